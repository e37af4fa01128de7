"""The example functions as files: what they declare, what they take and what they answer."""

from __future__ import annotations

import importlib.util
import json
import logging
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from faas.environments.profile import shipped_functions
from faas.model import FunctionSpec
from faas.subjects import contains
from faas.units import decode_unit
from faas.worker.context import Context


def load_handler(function: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{function}_handler", shipped_functions() / function / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(function: str, file: str) -> str:
    return Path(shipped_functions(), function, file).read_text()


@pytest.mark.parametrize("function", ["hello", "embed"])
def test_an_example_event_goes_to_a_trigger_of_its_function(function: str) -> None:
    """The demo publishes it to its subject; elsewhere nothing would hear it."""
    spec = msgspec.convert(tomllib.loads(read(function, "function.toml")), FunctionSpec, dec_hook=decode_unit)
    event = json.loads(read(function, "example_event.json"))

    assert event["specversion"] == "1.0"
    assert any(contains(trigger.subject, event["subject"]) for trigger in spec.triggers)


def test_hello_greets_whom_its_example_names() -> None:
    """It is the first thing that anyone sees of this package."""
    module = load_handler("hello")
    person = msgspec.convert(json.loads(read("hello", "example_event.json"))["data"], module.Person)

    greeting = module.handle(
        person, Context(function="hello", tenant="default", invocation_id="0" * 26, attempt=1, log=logging.getLogger("test"))
    )

    assert (greeting.text, greeting.attempt) == ("Bonjour, Ada!", 1)


@pytest.mark.parametrize("data", [{}, {"name": ""}, {"name": 1}, {"name": "Ada", "language": "tlh"}, {"name": "Ada", "nmae": "Bob"}])
def test_hello_takes_nothing_that_it_does_not_understand(data: dict[str, object]) -> None:
    """The type of its first parameter is the contract: what does not fit is rejected before it runs."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(data, load_handler("hello").Person)
