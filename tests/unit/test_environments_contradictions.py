"""A function's dependencies as text: what a lock is of, what contradicts a profile, and what a failure of uv means."""

from __future__ import annotations

import pytest

from faas.environments.build import overlay_digest
from faas.environments.dependencies import contradictions, dependencies_digest
from faas.environments.failure import explain, of_function
from faas.environments.installer import InstallerFailed
from faas.environments.interpreter import Interpreter
from faas.environments.lockfile import Pin, parse_lock
from faas.model import FunctionSpec, FunctionVersion

HERE = Interpreter(executable="/opt/python3.11", version="3.11", platform="linux-x86_64")


def function(*dependencies: str) -> FunctionVersion:
    return FunctionVersion(spec=FunctionSpec(name="thumb", dependencies=dependencies), version="v1", files=())


def test_a_lock_is_of_the_dependencies_and_of_the_profiles_lock() -> None:
    """Text may not move from one to the other unseen."""
    digests = {
        dependencies_digest(function("a"), b"lock"),
        dependencies_digest(function("a", "b"), b"lock"),
        dependencies_digest(function("ab"), b"lock"),
        dependencies_digest(function("a"), b"other"),
        dependencies_digest(function("al"), b"ock"),
    }

    assert len(digests) == 5


def test_an_overlay_is_of_its_environment_and_its_lock() -> None:
    """The same packages for another Python are other files."""
    assert len({overlay_digest(one, lock) for one in ("0" * 64, "1" * 64) for lock in (b"a", b"b")}) == 4


@pytest.mark.parametrize(
    ("dependencies", "free", "bound", "said", "sentences"),
    [
        (["pillow==9.5"], [Pin("pillow", "9.5")], [Pin("Pillow", "11.0")], "pillow==9.5", ["pillow==9.5 is asked for, but the profile locks Pillow==11.0"]),
        (["a"], [Pin("a", "1"), Pin("numpy", "1.26")], [Pin("numpy", "2.3")], "a depends on numpy<2", ["numpy==1.26 is asked for, but the profile locks numpy==2.3"]),
        # Newer without the profile and content with what it has: uv does not name it.
        (["a", "b<2"], [Pin("b", "1"), Pin("c", "5")], [Pin("b", "2"), Pin("c", "4")], "you require b<2", ["b<2 is asked for, but the profile locks b==2"]),
        (["a"], [Pin("b", "1")], [Pin("b", "2")], "what nobody can read", ["b==1 is asked for, but the profile locks b==2"]),
        (["a"], [Pin("a", "1")], [Pin("b", "2")], "b", []),
        (["typing_extensions<4"], [Pin("typing-extensions", "3.10")], [Pin("typing.extensions", "4.1")], "typing-extensions", ["typing_extensions<4 is asked for, but the profile locks typing.extensions==4.1"]),
    ],
)  # fmt: skip
def test_what_contradicts_a_profile_is_named_with_both_versions(
    dependencies: list[str], free: list[Pin], bound: list[Pin], said: str, sentences: list[str]
) -> None:
    """uv speaks of what it was given, and knows no profile."""
    assert contradictions(function(*dependencies), free, bound, said=said) == sentences


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        (b"a==1 --hash=sha256:00 --hash=sha256:01\n", [Pin("a", "1")]),
        (b"a==1 \\\n    --hash=sha256:00\nb==2 ; sys_platform == 'linux' \\\n    --hash=sha256:01\n", [Pin("a", "1"), Pin("b", "2", "sys_platform == 'linux'")]),
        (b"a==1 ; python_version < '4' --hash=sha256:00\n", [Pin("a", "1", "python_version < '4'")]),
        (b"# a==1\n\n", []),
    ],
)  # fmt: skip
def test_pins_are_read_wherever_their_hashes_stand(text: bytes, pins: list[Pin]) -> None:
    """A pin that is not seen would count as installed already."""
    lock = parse_lock(text)

    assert (list(lock.pins), lock.is_empty) == (pins, not pins)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InstallerFailed("half a line", signal=9), "the build was killed by SIGKILL; where memory ran out, free some, and try again"),
        (InstallerFailed("", signal=63), "the build was killed by signal 63"),
        (InstallerFailed("error: No solution found when resolving dependencies"), "its dependencies cannot be satisfied: no set of versions fits"),
        (InstallerFailed("error: Hash mismatch for `a==1`"), "the file of a==1 that was found for Python 3.11 on linux-x86_64 is none that its lock allows"),
    ],
)  # fmt: skip
def test_a_failure_says_first_what_to_do(error: InstallerFailed, sentence: str) -> None:
    """uv's words alone name neither the function nor the command that mends it."""
    assert explain(error, of_function(function("a")), HERE).startswith(sentence)
