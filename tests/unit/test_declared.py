"""A declaration in effect: exact values in the words of function.toml, and nothing that should have been a secret."""

from __future__ import annotations

import msgspec
import pytest

from faas.model import FunctionSpec, Limits
from faas.pool.lease import SCHEMA_CHARACTERS, Schemas
from faas.registry.declared import in_effect
from faas.triggers import Trigger
from faas.units import Duration, Size
from faas.worker import wire


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (1.5, "1500ms"), (30, "30s"), (90, "90s"), (5400, "90m"), (21_600, "6h"), (604_800, "7d"), (0, "0ms")],
)
def test_a_duration_is_written_so_that_it_reads_back_as_itself(seconds: float, text: str) -> None:
    """A rounded one would be another limit when it is copied into a file."""
    limits = in_effect(FunctionSpec(limits=Limits(timeout_s=Duration(seconds))))["limits"]

    assert isinstance(limits, dict)
    assert limits["timeout"] == text
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("size", [1, 1000, 2**10, 2**20 + 1, 256 * 2**20, 2**40, 3 * 2**30])
def test_a_size_is_written_so_that_it_reads_back_as_itself(size: int) -> None:
    """As durations are."""
    limits = in_effect(FunctionSpec(limits=Limits(memory_bytes=Size(size))))["limits"]

    assert isinstance(limits, dict)
    assert Size.parse(limits["memory"]) == size


def test_of_environment_variables_the_names_alone_are_told() -> None:
    """The answer goes to whoever may ask on the bus."""
    assert in_effect(FunctionSpec(env={"TOKEN": "s3cret", "A": "b"}))["env"] == ["A", "TOKEN"]


def test_triggers_and_tags_are_there_and_the_whole_is_json() -> None:
    """It travels in an answer on the bus."""
    declaration = in_effect(FunctionSpec(tags={"team": "a"}, triggers=(Trigger(subject="a.*"),)))

    assert msgspec.json.decode(msgspec.json.encode(declaration)) == declaration
    assert declaration["trigger"] == [{"subject": "a.*", "delivery": "at-least-once"}]


def test_of_a_trigger_only_what_its_kind_has_is_told() -> None:
    """A schedule has no stream and no webhook, and its payload is told as it was written."""
    trigger = Trigger(schedule="0 3 * * *", timezone="Europe/Berlin", payload={"depth": 2})

    assert in_effect(FunctionSpec(triggers=(trigger,)))["trigger"] == [
        {"delivery": "at-least-once", "schedule": "0 3 * * *", "timezone": "Europe/Berlin", "payload": {"depth": 2}}
    ]


@pytest.mark.parametrize("schema", ["", "nonsense", "[1]", "[" * 5000, '{"a": "' + "x" * SCHEMA_CHARACTERS + '"}', "{} {}"])
def test_a_schema_that_is_none_or_too_long_is_dropped(schema: str) -> None:
    """Whoever runs in a sandbox can report anything; the answer of a node has a limit."""
    loaded = wire.Loaded(load_us=0, cpu_us=0, memory_peak_bytes=0, input_schema=schema, output_schema='{"type": "string"}')

    assert Schemas.of(loaded) == Schemas("", '{"type": "string"}')
