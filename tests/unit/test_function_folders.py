"""The example functions as files: what they declare, what they take and what they answer."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from faas.environments.dependencies import problem_of
from faas.environments.profile import load_profiles, shipped_functions, shipped_runtimes
from faas.model import FunctionVersion
from faas.registry.spec import read_functions
from faas.subjects import contains
from faas.worker.context import Context

NAMES = ("classify", "embed", "hello", "resize", "speech", "tokens", "train")
README = Path(__file__).resolve().parents[2] / "README.md"


def load_handler(function: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{function}_handler", shipped_functions() / function / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(function: str, file: str) -> str:
    return Path(shipped_functions(), function, file).read_text()


@pytest.fixture(scope="module")
def functions() -> dict[str, FunctionVersion]:
    """The example functions by name, as a node reads them."""
    return {f.spec.name: f for f in read_functions(shipped_functions(), load_profiles(shipped_runtimes())[0]).functions}


def test_a_node_takes_every_example_function(functions: dict[str, FunctionVersion]) -> None:
    """They are what people copy."""
    assert tuple(sorted(functions)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_event_goes_to_a_trigger_of_its_function(functions: dict[str, FunctionVersion], name: str) -> None:
    """The demo publishes it to its subject; elsewhere nothing would hear it."""
    event = json.loads(functions[name].example)

    assert event["specversion"] == "1.0"
    assert any(contains(trigger.subject, event["subject"]) for trigger in functions[name].spec.triggers)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_of_an_example_function_is_that_of_its_dependencies(functions: dict[str, FunctionVersion], name: str) -> None:
    """After a change of either, `faas lock NAME` is easily forgotten, and everybody's first run would be a mistake of ours."""
    profiles, _ = load_profiles(shipped_runtimes())

    assert problem_of(functions[name], profiles[functions[name].spec.runtime]) == ""


@pytest.mark.parametrize("name", NAMES)
def test_an_example_function_runs_where_there_is_no_gpu(functions: dict[str, FunctionVersion], name: str) -> None:
    """Whoever tries them first does so on a laptop."""
    assert functions[name].spec.gpu.count == 0 or functions[name].spec.gpu.optional


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_what_an_example_function_is_for(name: str) -> None:
    """One that nobody can find teaches nobody."""
    _, _, section = README.read_text().partition("## Functions to learn from\n")

    assert f"| [`{name}`](functions/{name}/handler.py) |" in section.partition("\n## ")[0]


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
