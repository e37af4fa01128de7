"""The shape of the code: every rule of `layers.py` over every module of the tree, and each of them shown to be able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from layers import (
    BROAD_ALLOWED,
    POLLING_ALLOWED,
    Module,
    Modules,
    Rule,
    broad_places,
    import_cycles,
    import_order,
    library_homes,
    loose_tasks,
    module_docstring,
    module_name,
    modules_below,
    polling,
    signatures,
    sizes,
    sleeps_in_loops,
    stale_documents,
    unlisted_broad,
)

ROOT = Path(__file__).resolve().parents[1]
TREE = modules_below(ROOT, "faas")
BESIDE = {**modules_below(ROOT, "tests"), **modules_below(ROOT, "bench")}
RULES: tuple[Rule, ...] = (
    import_order,
    library_homes,
    import_cycles,
    sizes,
    signatures,
    module_docstring,
    module_name,
    loose_tasks,
    polling,
)
RULES_BESIDE: tuple[Rule, ...] = (sizes, module_docstring, module_name)


def pairs(rules: tuple[Rule, ...], modules: Modules) -> list[object]:
    return [pytest.param(rule, module, id=f"{rule.__name__}-{module.path}") for rule in rules for module in modules.values()]


@pytest.mark.parametrize(("rule", "module"), [*pairs(RULES, TREE), *pairs(RULES_BESIDE, BESIDE)])
def test_a_module_keeps_the_rule(rule: Rule, module: Module) -> None:
    """The docstring of each rule says why it matters."""
    assert not list(rule(module, TREE))


def test_everything_is_caught_in_one_place_at_most() -> None:
    """A handler for any exception hides the bugs of all the code below it."""
    unlisted = unlisted_broad(TREE)

    assert len(unlisted) <= 1, unlisted


def test_no_allowance_outlives_its_reason() -> None:
    """An entry that nothing needs would excuse the next one who sleeps or swallows there."""
    sleeps = {module.place(around) for module in TREE.values() for _call, around in sleeps_in_loops(module)}
    swallows = {place for module in TREE.values() for place, _where in broad_places(module)}

    assert set(POLLING_ALLOWED) - sleeps == set()
    assert set(BROAD_ALLOWED) - swallows == set()


def test_documents_name_nothing_that_is_gone() -> None:
    """A path that leads nowhere is where a reader stops trusting the page."""
    if not (ROOT / "faas/README.md").exists():
        pytest.skip("no faas/README.md yet")
    assert not list(stale_documents(ROOT))


# ---------------------------------------------------------------- each rule can fail

PARAGRAPH = '"""Owns one thing of a made-up tree, and says so in a paragraph; knows nothing else."""\n'


def offences(tmp_path: Path, rule: Rule, files: dict[str, str]) -> list[str]:
    """What `rule` says of a tree `faas/` with these files."""
    for path, text in files.items():
        (tmp_path / "faas" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faas" / path).write_text(text)
    tree = modules_below(tmp_path, "faas")
    return [offence for module in tree.values() for offence in rule(module, tree)]


@pytest.mark.parametrize(
    ("rule", "path", "text", "words"),
    [
        (import_order, "bus/pull.py", "from faas.pool import pool", ":1: imports faas.pool: height 2 may not import `pool`"),
        (import_order, "bus/pull.py", "import faas.registry.spec", "`registry` of height 2"),
        (import_order, "pool/pool.py", "def f():\n    from faas import accounting", ":2: imports faas"),
        (import_order, "rollout.py", "if TYPE_CHECKING:\n    from faas.dispatcher import Dispatcher", "`dispatcher`"),
        (import_order, "model.py", "from faas.config import Config", "height 0"),
        (import_order, "worker/serve.py", "from faas.errors import FaasError", "`worker` imports only"),
        (import_order, "worker/serve.py", "from ..errors import FaasError", "`worker` imports only"),
        (import_order, "gateway/http.py", "importlib.import_module('faas.rollout')", "`rollout`"),
        (import_order, "__init__.py", "from faas.client import connect", "only `faas.worker`"),
        (import_order, "plugins.py", "", "`plugins` has no height"),
        (library_homes, "app.py", "import nats.js", "imports nats, whose home is bus/ and calling/ and client.py"),
        (library_homes, "bus/pull.py", "import requests", "no home"),
        (library_homes, "model.py", "import structlog", "do not log"),
        (library_homes, "worker/zygote.py", "import torch", "module level"),
        (library_homes, "pool/process.py", "def f():\n    import docker", "pool/docker.py and environments/image.py"),
        (sizes, "app.py", "x = 1\n" * 401, "401 lines"),
        (sizes, "app.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        (signatures, "app.py", "def f(a, *, b, c, d, e, g, h, i, j): ...", "9 parameters"),
        (signatures, "app.py", "class A:\n    def f(self, a, b, c, d): ...", "A.f has 4 positional"),
        (signatures, "app.py", "def f(a: dict[str, Any]): ...", "dict[str, Any]"),
        (signatures, "app.py", "def f() -> 'list[dict[str, Any]]': ...", "dict[str, Any]"),
        (module_docstring, "app.py", "import os", "no paragraph"),
        (module_docstring, "app.py", '"""The app."""', "no paragraph"),
        (module_name, "bus/utils.py", "", "`utils` says nothing"),
        (loose_tasks, "app.py", "asyncio.create_task(f())", "asyncio.create_task"),
        (loose_tasks, "app.py", "asyncio.get_running_loop().create_task(f())", "every task"),
        (loose_tasks, "app.py", "loop.create_task(f())\nensure_future(f())", ":2: ensure_future"),
        (polling, "app.py", "async def f():\n    while not done():\n        await asyncio.sleep(1)", "app.py:f sleeps"),
    ],
)
def test_an_offence_is_seen(tmp_path: Path, *, rule: Rule, path: str, text: str, words: str) -> None:
    """A check that cannot fail proves nothing."""
    seen = offences(tmp_path, rule, {path: text})

    assert any(words in offence and offence.startswith(f"faas/{path}:") for offence in seen), seen


def test_a_module_in_order_offends_no_rule(tmp_path: Path) -> None:
    """Every rule lets through what the house does all the time, or nobody could write a line."""
    body = "import asyncio\nfrom faas import errors\nfrom faas.bus.pull import PullLoop\nimport structlog, msgspec\n"
    body += "class A:\n    def __exit__(self, a, b, c): ...\n    async def run(self, group: asyncio.TaskGroup, *, d, e, f):\n"
    body += "        self._group = group\n        self._group.create_task(f())\n        await asyncio.sleep(1)\n"
    files = {"__init__.py": PARAGRAPH, "errors.py": PARAGRAPH, "bus/pull.py": PARAGRAPH + "import nats", "pool/pool.py": PARAGRAPH + body}

    assert [offence for rule in RULES for offence in offences(tmp_path, rule, files)] == []


def test_an_import_cycle_is_seen_through_a_lazy_import(tmp_path: Path) -> None:
    """Hiding half of a cycle in a function leaves the modules as tangled as before."""
    seen = offences(tmp_path, import_cycles, {"bus/a.py": "from faas.bus import b", "bus/b.py": "def f():\n    from .a import x"})

    assert seen == ["faas/bus/a.py:1: import cycle faas.bus.a -> faas.bus.b -> faas.bus.a", seen[-1]]
    assert len(seen) == 2


def test_a_swallowed_exception_is_seen_and_a_raised_one_is_not(tmp_path: Path) -> None:
    """Cleaning up and raising again hides nothing."""
    swallow = "try: f()\nexcept (OSError, Exception): pass\nwith suppress(BaseException): f()\ntry: f()\nexcept: pass\n"
    offences(tmp_path, sizes, {"app.py": swallow + "try: f()\nexcept BaseException:\n    g()\n    raise\n"})

    assert sorted(unlisted_broad(modules_below(tmp_path, "faas"))) == [f"faas/app.py:{line} (app.py:module)" for line in (2, 3, 5)]


def test_a_path_that_is_gone_is_seen_in_a_document(tmp_path: Path) -> None:
    """The words around it may be right for years after the file has moved."""
    offences(tmp_path, sizes, {"bus/pull.py": "def test_a(): ..."})
    (tmp_path / "README.md").write_text(
        "`bus/pull.py` `faas/gone.py` `application/json`\n```\n`no/path.py`\n```\n`bus/pull.py::test_a` `bus/pull.py::test_b`\n"
    )

    assert list(stale_documents(tmp_path)) == [
        "README.md:1: `faas/gone.py` does not exist",
        "README.md:5: `bus/pull.py::test_b` has no test_b",
    ]


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by it, and refuses the whole suite where two folders have the same; a run of one file does not show that."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]

    assert sorted({name for name in names if names.count(name) > 1}) == []
