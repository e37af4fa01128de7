"""The packages of one function on the import path of its worker: after the fork, behind its code, before the environment's."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from conftest import invoke_message, load_message, result_of

from faas.pool.backend import Sandbox
from faas.pool.worker import Worker
from faas.worker import wire

VERSION_OF = "import flavour\ndef handle(event):\n    return [flavour.NAME, flavour.__file__]\n"


def package(folder: Path, name: str, text: str) -> str:
    """A folder with one importable package in it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return str(folder)


async def load(sandbox: Sandbox, code: str, overlay: str, version: str = "v1") -> tuple[Worker, wire.Loaded | wire.LoadFailed]:
    worker = await sandbox.fork()
    worker.lease()
    return worker, await worker.load(msgspec.structs.replace(load_message(code, version=version), overlay=overlay))


async def test_forks_of_one_zygote_have_different_versions_of_a_package(sandbox: Sandbox, tmp_path: Path) -> None:
    """An overlay goes onto the path after the fork, so that what is preloaded is shared all the same."""
    answers = []
    for flavour in ("mild", "hot"):
        overlay = package(tmp_path / flavour, "flavour", f"NAME = {flavour!r}")
        worker, _ = await load(sandbox, VERSION_OF, overlay, version=flavour)
        answers.append(await result_of(worker, invoke_message()))

    assert answers == [[flavour, str(tmp_path / flavour / "flavour" / "__init__.py")] for flavour in ("mild", "hot")]


async def test_the_functions_code_comes_before_its_packages_and_the_standard_library_too(sandbox: Sandbox, tmp_path: Path) -> None:
    """As in a fresh interpreter: a package named like a module of either does not take its place."""
    package(tmp_path, "handler", "raise RuntimeError('not this one')")
    overlay = package(tmp_path, "colorsys", "raise RuntimeError('not this one')")
    worker, _ = await load(sandbox, "import colorsys\ndef handle(event):\n    return colorsys.__file__\n", overlay)

    found = await result_of(worker, invoke_message())
    assert isinstance(found, str)
    assert found.startswith(sys.base_prefix)


async def test_a_package_that_the_template_has_imported_from_elsewhere_is_a_conflict_that_names_both(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Its own would be ignored without a word: one process holds one module of a name."""
    overlay = package(tmp_path, "msgspec", "")

    _, answer = await load(sandbox, "def handle(event):\n    return 1\n", overlay)

    assert isinstance(answer, wire.LoadFailed)
    assert overlay in answer.detail
    assert f"has imported msgspec from {msgspec.__file__}" in answer.detail


async def test_an_overlay_that_is_gone_is_an_error_of_loading(sandbox: Sandbox, tmp_path: Path) -> None:
    """Somebody emptied the state folder below a running node: the function fails and says what is missing."""
    _, answer = await load(sandbox, "def handle(event):\n    return 1\n", str(tmp_path / "gone"))

    assert isinstance(answer, wire.LoadFailed)
    assert str(tmp_path / "gone") in answer.detail
