"""The rules of the shape of the code: import order, one home per library, sizes, and what the house style forbids, read with `ast`.

Imports nothing of the package, so that it also judges modules that do not import. Every rule is one function over one
module that yields what offends it, as `file:line: why`. `test_layers.py` runs them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from faas.syntax import parse

HEIGHTS = {
    0: "errors model listed objects invocation runs tally subjects strict syntax triggers cron concurrency units identity envelope seeds processes version worker",
    1: "config statefolder telemetry",
    2: "scheduling budget bus calling gpu registry security environments",
    3: "place pool accounting timetable admission unended keyed client",
    4: "dispatcher ends intake cancelling questions rollout gateway",
    5: "node app",
    6: "cli testing __main__",
}
HEIGHT = {part: height for height, parts in HEIGHTS.items() for part in parts.split()}
SAME_HEIGHT = {
    ("app", "node"),
    ("registry", "bus"),
    ("registry", "security"),
    ("security", "bus"),
    ("intake", "dispatcher"),
    ("dispatcher", "ends"),
    ("rollout", "intake"),
    ("__main__", "cli"),
}
"""Who may import whom at its own height; of height 0 everything but `worker` may import its neighbours."""

HOMES = {
    "nats": ("bus/", "calling/", "client.py"),  # the client stands where a foreign program stands: on the other side of the bus
    "aiohttp": ("gateway/",),
    "aiohttp_sse": ("gateway/events.py",),
    "uvloop": ("cli/",),
    "cyclopts": ("cli/",),
    "rich": ("cli/",),
    "docker": ("pool/docker.py", "environments/image.py"),
    "watchfiles": ("registry/watch.py",),
    "nkeys": ("seeds.py",),
    "uv": ("environments/",),
    "packaging": ("environments/probe.py",),  # that of the interpreter that is asked, or pip's copy of it
    "pip": ("environments/probe.py",),
    "standardwebhooks": ("security/signatures.py",),
    "aiosqlite": ("accounting/projection.py",),
    "prometheus_client": ("gateway/metrics.py",),
    "pynvml": ("gpu/",),
    "torch": ("worker/",),  # lazily, where the environment of the handler has it
    "cronsim": ("cron.py",),
    "pytest": ("testing/",),
}
"""Library -> the files and folders that may import it. `msgspec` and `structlog` have their own rules; any other library has no home yet."""

FILE_LINES, FUNCTION_LINES, PARAMETERS, POSITIONAL = 400, 60, 8, 3
PARAGRAPH_CHARACTERS, SENTENCE_CHARACTERS = 60, 20
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "base", "misc"}

POLLING_ALLOWED = {
    "accounting/records.py:UsageRecords._store": "back-off between two tries while the bus refuses; nothing announces its return",
    "bus/clock.py:ClockWatch._run": "nothing announces that a clock was set",
    "bus/disk.py:DiskWatch._run": "nothing announces that a disk fills up, or that it has space again",
    "bus/keeper.py:StreamKeeper._run": "back-off between two tries to declare; what makes it try is awaited",
    "bus/cancels.py:Cancels.read": "back-off between two tries to read what was cancelled while the connection was lost",
    "bus/pull.py:Heartbeats._run": "beats at a fixed pace while a delivery is held, and waits for an event while none is",
    "bus/server.py:EmbeddedServer._watch": "back-off between two starts; the end of the server itself is awaited",
    "calling/flows.py:items_of": "as client.request: a node that stops answered; nothing announces the next one",
    "client.py:Client.request": "a node that stops answered; nothing announces the next one",
    "registry/nodes.py:Nodes._beat": "a sign of life at a fixed pace; nothing happens that could be waited for",
    "pool/warmth.py:Warmth.watch_secrets": "a folder of secrets may be on any file system, and few announce what others change",
    "pool/large.py:LargeBodies._put": "back-off between two tries while the bus is away or the bucket is full; nothing announces room",
    "dispatcher.py:Dispatcher._insist": "back-off between two tries while the bus is away",
}
"""`file:function` -> why it sleeps in a loop; an entry that nothing needs any more is an offence."""

BROAD_ALLOWED = {
    "accounting/following.py:Follower._run": "nothing depends on the view of what ran: whatever breaks it ends no node",
    "questions.py:Questions._answer": "anybody may ask: whatever a question breaks ends no node",
    "bus/connection.py:Subscription._receive": "total: an exception here would end the reading of its subject for ever",
    "bus/connection.py:Bus._announce": "total, as nats-py's callbacks must be",
    "bus/client.py:give_up": "gives up a client that is broken already; what it says about it changes nothing",
    "gateway/server.py:Gateway._handle": "the request boundary: what is wrong with one request ends no other",
    "environments/probe.py:_broken": "code of others: whatever its import raises is what was asked for",
    "cli/findings.py:examine.run": "a probe that breaks is a finding: the doctor is asked when things are broken",
    "calling/flows.py:_caught": "raised again when the turn of its item has come",
    "calling/flows.py:in_order": "the caller's own items may raise anything; raised again as it is, outside the group",
    "worker/loader.py:_hints": "the author's annotations may name what exists only for a type checker",
    "worker/loader.py:_schema": "no schema is no reason not to run",
    "worker/serve.py:_load": "the author's code: whatever it raises is the end of its load",
    "worker/serve.py:_Function.invoke": "the author's code: whatever it raises is the end of its attempt",
    "worker/serve.py:_flush": "an author's stream may raise anything; the answer is there already",
    "worker/serve.py:_sentence": "an author's __str__ may raise too",
    "worker/calls.py:_encoded": "whatever an author's type raises while it is encoded",
    "worker/logs.py:_Handler.emit": "the author's arguments may not fit the message; logging says so",
    "worker/zygote.py:_live": "the end of a forked process, which must not run on in its parent's stack",
}
"""`file:function` -> why it catches everything without raising it again; beside these, one such place is left to the package."""

WRITTEN_AT_RUN_TIME = {"node.json", "faas.toml"}
"""Files that documents name and a checkout does not hold: people or nodes write them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file: `name` is dotted, `path` relative to the root of the tree, with forward slashes."""

    name: str
    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return parse(self.text)

    @cached_property
    def nodes(self) -> list[tuple[ast.AST, tuple[ast.AST, ...]]]:
        """Every node with those around it, outermost first."""
        found: list[tuple[ast.AST, tuple[ast.AST, ...]]] = []
        todo: list[tuple[ast.AST, tuple[ast.AST, ...]]] = [(self.tree, ())]
        while todo:
            node, around = todo.pop()
            found.append((node, around))
            todo += [(child, (*around, node)) for child in ast.iter_child_nodes(node)]
        return found

    @property
    def is_package(self) -> bool:
        return self.path.endswith("/__init__.py")

    @property
    def part(self) -> str:
        """`bus` of `faas.bus.pull`; empty for the package itself and for what is no part of it."""
        return self.name.split(".")[1] if self.name.startswith("faas.") else ""

    def functions(self) -> Iterator[tuple[Function, str, bool]]:
        """Every function with its dotted name in the file, and whether it is a method that takes self or cls."""
        for node, around in self.nodes:
            if isinstance(node, Function):
                names = [at.name for at in around if isinstance(at, Function | ast.ClassDef)]
                static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                yield node, ".".join([*names, node.name]), isinstance(around[-1], ast.ClassDef) and not static

    def place(self, around: tuple[ast.AST, ...]) -> str:
        """`bus/pull.py:PullLoop.run`, relative to the package: the key of the allow-lists."""
        names = [at.name for at in around if isinstance(at, Function | ast.ClassDef)]
        return f"{self.path.partition('/')[2]}:{'.'.join(names) or 'module'}"


def modules_below(root: Path, folder: str) -> dict[str, Module]:
    """The modules of `root`/`folder` by dotted name."""
    found = {}
    for file in sorted((root / folder).rglob("*.py")):
        path = file.relative_to(root).as_posix()
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        found[name] = Module(name, path, file.read_text())
    return found


def imports(module: Module, names: dict[str, Module] | set[str]) -> Iterator[tuple[str, int, bool]]:
    """(imported module, line, whether never when the module itself is imported: inside a function, or for type checkers alone)."""
    for node, around in module.nodes:
        lazy = any(isinstance(at, Function) or (isinstance(at, ast.If) and ast.unparse(at.test) == "TYPE_CHECKING") for at in around)
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.name.split(".")[: None if module.is_package else -1]
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield (f"{base}.{alias.name}" if f"{base}.{alias.name}" in names else base), node.lineno, lazy
        elif isinstance(node, ast.Call) and last_name(node.func) in ("import_module", "import__"):
            match node.args:
                case [ast.Constant(value=str() as name), *_]:
                    yield name, node.lineno, True


# ---------------------------------------------------------------- the rules: (module, the whole tree) -> what offends, `file:line: why`

Modules = dict[str, Module]
Rule = Callable[[Module, Modules], Iterator[str]]


def import_order(module: Module, tree: Modules) -> Iterator[str]:
    """What stands lower never imports what stands higher, and neighbours leave one another alone."""
    if module.part and module.part not in HEIGHT:
        yield f"{module.path}:1: part `{module.part}` has no height in the table of ARCHITECTURE.md"
        return
    for imported, line, lazy in imports(module, tree):
        if imported.split(".")[0] != "faas":
            continue
        target = ([*imported.split("."), ""])[1]
        where = f"{module.path}:{line}: imports {imported}"
        if not module.part:
            if target != "worker" and not lazy:
                yield f"{where}, but the package itself imports only `faas.worker` when it is imported"
        elif module.part == "worker":
            if target not in ("worker", ""):
                yield f"{where}, but `worker` imports only the standard library, msgspec and `faas.worker`"
        elif not target:
            if HEIGHT[module.part] < 6:
                yield f"{where}, but public names are for authors of functions: import the module that has the name"
        elif target not in HEIGHT:
            yield f"{where}, which has no height in the table of ARCHITECTURE.md"
        elif target != module.part and HEIGHT[target] >= HEIGHT[module.part] > 0 and (module.part, target) not in SAME_HEIGHT:
            yield f"{where}: height {HEIGHT[module.part]} may not import `{target}` of height {HEIGHT[target]}"
        elif HEIGHT[module.part] == 0 < HEIGHT[target]:
            yield f"{where}: height 0 imports nothing above"


def library_homes(module: Module, tree: Modules) -> Iterator[str]:
    """A library is known to its one home, so that replacing it touches one place."""
    inside = module.path.partition("/")[2]
    for imported, line, lazy in imports(module, tree):
        library = imported.split(".")[0]
        if library in sys.stdlib_module_names or library in ("faas", "msgspec"):
            continue
        where = f"{module.path}:{line}: imports {library}"
        if library == "structlog":
            if not module.part or HEIGHT.get(module.part) == 0:
                yield f"{where}, but the lowest layer and the worker do not log"
        elif library not in HOMES:
            yield f"{where}, which has no home yet: name one in tests/layers.py"
        elif not any(inside.startswith(home) or inside == home.rstrip("/") + ".py" for home in HOMES[library]):
            yield f"{where}, whose home is {' and '.join(HOMES[library])}"
        elif library == "torch" and not lazy:
            yield f"{where} at module level; an environment need not have it"


def import_cycles(module: Module, tree: Modules) -> Iterator[str]:
    """A module that reaches itself cannot be read, tested or replaced alone."""
    todo, seen = [(module.name, module.name)], set()
    while todo:
        at, way = todo.pop()
        for imported, _line, _lazy in imports(tree[at], tree):
            package = imported.rpartition(".")[0]
            for step in {imported, package if package.count(".") else imported}:
                if step == module.name and at != module.name:
                    yield f"{module.path}:1: import cycle {way} -> {step}"
                elif step in tree and step not in seen and not module.name.startswith(f"{step}."):
                    seen.add(step)
                    todo.append((step, f"{way} -> {step}"))


def sizes(module: Module, _tree: Modules) -> Iterator[str]:
    """A file or a function that does not fit in one's head is two."""
    lines = len(module.text.splitlines())
    if lines > FILE_LINES:
        yield f"{module.path}:{FILE_LINES + 1}: {lines} lines; the cap is {FILE_LINES}"
    for function, name, _method in module.functions():
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{module.path}:{function.lineno}: {name} has {length} lines; the cap is {FUNCTION_LINES}"


def signatures(module: Module, _tree: Modules) -> Iterator[str]:
    """Few parameters, named where they are many, and none that hides its fields in a dictionary."""
    for function, name, method in module.functions():
        given = function.args
        positional = [*given.posonlyargs, *given.args]
        every = [*positional, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        where = f"{module.path}:{function.lineno}: {name}"
        if len(every) > PARAMETERS:
            yield f"{where} has {len(every)} parameters; the cap is {PARAMETERS}"
        if len(positional) - method > POSITIONAL:
            yield f"{where} has {len(positional) - method} positional parameters; more than {POSITIONAL} are keyword-only"
        for annotation in [argument.annotation for argument in every] + [function.returns]:
            if annotation and re.search(r"\b[dD]ict\[str, (typing\.)?Any\]", ast.unparse(annotation).strip("'\"")):
                yield f"{where} has dict[str, Any] in its signature; a Struct says what is in it"


def module_docstring(module: Module, _tree: Modules) -> Iterator[str]:
    """A reader learns from its first paragraph what a module owns and what it does not know; of a package or a test a sentence will do."""
    said = " ".join((ast.get_docstring(module.tree) or "").split())
    least = PARAGRAPH_CHARACTERS if module.part and not module.is_package else SENTENCE_CHARACTERS
    if len(said) < least or "." not in said:
        yield f"{module.path}:1: starts with no paragraph of {least} characters at least: {said!r}"


def module_name(module: Module, _tree: Modules) -> Iterator[str]:
    """A name that says nothing attracts everything."""
    for token in module.name.split("."):
        if token in FORBIDDEN_NAMES:
            yield f"{module.path}:1: `{token}` says nothing; name the thing that the module owns"


def loose_tasks(module: Module, _tree: Modules) -> Iterator[str]:
    """A task outside a TaskGroup loses its exception, and outlives its part."""
    groups: set[str] = set()
    for node, _around in module.nodes:
        match node:
            case ast.withitem(context_expr=made, optional_vars=ast.expr() as name) if "TaskGroup(" in ast.unparse(made):
                groups.add(last_name(name))
            case ast.Assign(targets=targets, value=made) if "TaskGroup(" in ast.unparse(made):
                groups.update(map(last_name, targets))
            case ast.AnnAssign(target=name, annotation=kind) if "TaskGroup" in ast.unparse(kind):
                groups.add(last_name(name))
            case ast.arg(arg=name, annotation=ast.expr() as kind) if "TaskGroup" in ast.unparse(kind):
                groups.add(name.lstrip("_"))
    for node, _around in module.nodes:
        if not isinstance(node, ast.Call) or last_name(node.func) not in ("create_task", "ensure_future"):
            continue
        owner = last_name(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        if last_name(node.func) == "ensure_future" or owner not in groups:
            yield f"{module.path}:{node.lineno}: {ast.unparse(node.func)}: every task belongs to a TaskGroup"


def last_name(node: ast.AST) -> str:
    """`tasks` of `self._tasks`."""
    return re.split(r"\W", ast.unparse(node).removesuffix("()"))[-1].lstrip("_")


def sleeps_in_loops(module: Module) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
    """Every call of a sleep() inside a while loop of its own function, with what is around it."""
    for node, around in module.nodes:
        if isinstance(node, ast.Call) and last_name(node.func) == "sleep":
            own = max((index for index, at in enumerate(around) if isinstance(at, Function)), default=0)
            if any(isinstance(at, ast.While) for at in around[own:]):
                yield node, around


def polling(module: Module, _tree: Modules) -> Iterator[str]:
    """A loop that sleeps and looks again is late and costs an idle node its idleness."""
    for call, around in sleeps_in_loops(module):
        if (place := module.place(around)) not in POLLING_ALLOWED:
            yield f"{module.path}:{call.lineno}: {place} sleeps in a while loop: wait for an event, or give the reason in tests/layers.py"


def broad_places(module: Module) -> Iterator[tuple[str, str]]:
    """(place, `file:line`) of every handler that takes any exception and does not end in `raise`, and every suppress() of any."""
    for node, around in module.nodes:
        caught: ast.AST | None = None
        if isinstance(node, ast.ExceptHandler) and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None):
            caught = node.type or ast.Name("BaseException")
        elif isinstance(node, ast.Call) and last_name(node.func) == "suppress":
            caught = ast.Tuple(node.args)
        if caught and re.search(r"\b(Base)?Exception\b", ast.unparse(caught)):
            yield module.place(around), f"{module.path}:{node.lineno}"  # type: ignore[attr-defined]


def unlisted_broad(tree: Modules) -> list[str]:
    return [f"{where} ({place})" for module in tree.values() for place, where in broad_places(module) if place not in BROAD_ALLOWED]


DOCUMENTS = (
    "README.md",
    "faas/README.md",
    "bench/README.md",
    "deploy/README.md",
    "deploy/secrets.md",
    "deploy/tenants.md",
    "functions/README.md",
    "functions/events.md",
    "runtimes/README.md",
)


def stale_documents(root: Path) -> Iterator[str]:
    """Paths (and tests, as `file::test`) that the pages of DOCUMENTS name in backticks and that do not exist."""
    for document in DOCUMENTS:
        text = (root / document).read_text() if (root / document).exists() else ""
        text = re.sub(r"^```.*?^```$", lambda fence: "\n" * fence[0].count("\n"), text, flags=re.S | re.M)
        for number, line in enumerate(text.splitlines(), 1):
            for named in re.findall(r"`([\w.\-/]+(?:::\w+)?)`", line):
                if why := missing(root, document, named):
                    yield f"{document}:{number}: `{named}` {why}"


def missing(root: Path, document: str, named: str) -> str:
    """Why a path that a document names leads nowhere; empty where it is there or no path of the checkout."""
    path, _, test = named.partition("::")
    looks_like_a_file = re.search(r"\.(py|toml|md|lock|in|json|yaml|yml|sh)$", path)
    first = path.split("/")[0]
    if path.startswith(("/", "..", ".faas", ".venv")) or path in WRITTEN_AT_RUN_TIME or first.isupper():
        return ""
    bases = (root, root / "faas", (root / document).parent)
    if not looks_like_a_file and not ("/" in path and any((base / first).is_dir() for base in bases)):
        return ""
    found = [base / path for base in bases if (base / path).exists()]
    if not found and "/" not in path:
        found = [file for folder in ("faas", "tests", "functions", "runtimes", "bench") for file in (root / folder).rglob(path)]
    if not found:
        return "does not exist"
    return f"has no {test}" if test and not re.search(rf"\bdef {test}\b", found[0].read_text()) else ""
