"""What a function's folder may say, and what it is told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from folders import HANDLER, PROFILES, folder, only_error, read, without_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faas.errors import SpecInvalid
from faas.registry.bundle import Declaration
from faas.registry.spec import spec_of


def test_an_empty_file_is_a_function_with_the_defaults_of_the_contract(tmp_path: Path) -> None:
    """Capped by its profile, without a word."""
    folder(tmp_path, "hello")
    (function,), invalid = read(tmp_path)
    spec = function.spec

    assert invalid == []
    assert (spec.name, spec.handler, spec.runtime, spec.tenant) == ("hello", "handler:handle", "standard", "default")
    assert (spec.limits.timeout_s, spec.limits.load_timeout_s, spec.limits.queue_timeout_s) == (30, 300, 6 * 3600)
    assert (spec.limits.memory_bytes, spec.limits.cpus, spec.limits.pids) == (2**30, 2, 64)
    assert spec.limits.payload_bytes == 64 * 2**20
    assert (spec.retry.max_attempts, spec.retry.on, spec.retry.backoff_s, spec.retry.max_backoff_s) == (3, ("crash", "gpu"), 2, 60)
    assert spec.retry.dead_letter
    assert (spec.scale.min_warm, spec.scale.max_workers, spec.scale.keep_alive_s) == (0, 4, 300)


def test_every_key_that_is_built_is_read(tmp_path: Path) -> None:
    """The whole of what a function may say today."""
    folder(
        tmp_path,
        "one",
        """
name = "thumbnail"
handler = "handler:handle"
runtime = "standard"
tenant = "acme"
tags = { project = "catalog" }
env = { MODEL_SIZE = "small", _x1 = "" }
[[trigger]]
subject = "images.*.uploaded"
[[trigger]]
subject = "images.now"
delivery = "at-most-once"
[gpu]
count = 1
optional = true
[limits]
timeout = "250ms"
load_timeout = "1m"
queue_timeout = "7d"
memory = "512MiB"
cpus = 0.5
pids = 16
payload = "1MiB"
[retry]
max_attempts = 5
on = ["timeout", "error"]
backoff = "1s"
max_backoff = "5m"
dead_letter = false
[scale]
min_warm = 1
max_workers = 2
keep_alive = "10s"
[output]
publish = "images.thumbnails"
""",
    )
    ((function,), invalid) = read(tmp_path)

    assert invalid == []
    assert function.key == ("acme", "thumbnail")
    assert [trigger.delivery for trigger in function.spec.triggers] == ["at-least-once", "at-most-once"]
    assert function.spec.limits.timeout_s == 0.25
    assert function.spec.output.publish == "images.thumbnails"
    assert function.spec.env == {"MODEL_SIZE": "small", "_x1": ""}


@pytest.mark.parametrize(
    ("spec", "key", "word"),
    [
        ('[limits]\ntimeoutt = "3s"', "limits.timeoutt", "did you mean timeout"),
        ('nmae = "x"', "nmae", "did you mean name"),
        ("[limits]\ntimeout = 3", "limits.timeout", '"30s"'),
        ('[limits]\ntimeout = "3 parsecs"', "limits.timeout", '"30s"'),
        ('[limits]\nmemory = "2GB"', "limits.memory", '"512MiB"'),
        ('[limits]\nmemory = "2GiB"', "limits.memory", "profile standard"),
        ("[limits]\ncpus = 64", "limits.cpus", "profile standard"),
        ("[limits]\npids = 100", "limits.pids", "profile standard"),
        ("[limits]\ncpus = 0", "limits.cpus", "above 0"),
        ('[limits]\nqueue_timeout = "8d"', "limits.queue_timeout", "7d"),
        ('[retry]\non = ["sometimes"]', "retry.on", "crash"),
        ("[retry]\nmax_attempts = 0", "retry.max_attempts", "between"),
        ("[scale]\nmin_warm = 9", "scale.min_warm", "max_workers"),
        ('runtime = "big"', "runtime", "standard"),
        ('name = "No_Name"', "name", 'like name = "no-name"'),
        ('name = "--"', "name", "at most 63"),
        ('env = { "A B" = "x" }', "env", "no name of a variable"),
        ('env = { "A=B" = "x" }', "env", "no name of a variable"),
        ('env = { A = "\\u0000" }', "env.A", "zero character"),
        ("env = { A = 1 }", "env", "must be text"),
        ('env = { A = "' + "x" * 2**16 + '" }', "env", "64 KiB at most"),
        ('secrets = "hf_token"', "secrets", "must be a list"),
        ('secrets = ["../hf_token"]', "secrets[0]", "no name of a secret"),
        ('secrets = ["a", "hf.token"]', "secrets[1]", "letters and digits"),
        ('secrets = ["hf_token_previous"]', "secrets[0]", "kept for rotation"),
        ('secrets = ["a", "a"]', "secrets[1]", "name each once"),
        ("secrets = [" + ",".join(f"'s{n}'" for n in range(21)) + "]", "secrets", "20 at most"),
        ("[[trigger]]\nsubject = 'a'\n" * 101, "trigger", "100 at most"),
        ("[[mount]]\nsource = 'a'\ntarget = 'a'\n" * 21, "mount", "20 at most"),
        ("dependencies = [" + "'a'," * 101 + "]", "dependencies", "100 at most"),
        ('handler = "handler"', "handler", "module:attribute"),
        ('handler = "other:handle"', "handler", "other.py"),
        ('[[trigger]]\nsubject = "faas.mine"', "trigger[0].subject", "belong"),
        ('[[trigger]]\nsubject = "$SYS.x"', "trigger[0].subject", "belong"),
        ('[[trigger]]\nsubject = "*.created"', "trigger[0].subject", "first token"),
        ('[[trigger]]\nsubject = "a..b"', "trigger[0].subject", "tokens"),
        ('[[trigger]]\nsubject = "a.b*"', "trigger[0].subject", "wildcard"),
        ('[[trigger]]\nsubject = "a b"', "trigger[0].subject", "tokens"),
        ('[[trigger]]\nsubject = "a"\ndelivery = "exactly-once"', "trigger", "at-least-once"),
        ("[[trigger]]\n", "trigger", "subject"),
        ('[output]\npublish = "a.*"', "output.publish", "wildcard"),
        ('[output]\npublish = "faas.outcome.x"', "output.publish", "belong"),
        ("tags = { a = 1 }", "tags", "must be text"),
        ("tags = 1", "tags", "a table"),
        ("limits = []", "limits", "a table"),
        ('[trigger]\nsubject = "a"', "trigger", "a list"),
        ("handler = 1979-05-27", "handler", "must be text, and is a date"),
        ('[limits]\nmemory = "' + "9" * 400 + 'GiB"', "limits.memory", "count"),
        ("[limits]\ncpus = nan", "limits.cpus", "above 0"),
        ("[limits]\ncpus = inf", "limits.cpus", "profile standard"),
        ('[[trigger]]\nsubject = "' + "a" * 300 + '"', "trigger[0].subject", "255 characters"),
        ('"a\\nb" = 1', "'a\\nb'", "unknown key"),
        ('"" = 1', "''", "unknown key"),
        ("a = " + "9" * 5000, "", "digits"),
        ("dependencies = ['pillow>=11']", "dependencies", "faas lock fn"),
        ("dependencies = ['-r other.txt']", "dependencies[0]", "no options"),
        ("dependencies = ['a', 'pip @ https://x/y.whl']", "dependencies[1]", "addresses"),
        ("dependencies = ['../wheel.whl']", "dependencies[0]", "paths"),
        ("dependencies = 'pillow'", "dependencies", "a list"),
        ("[scale]\nweight = true", "scale.weight", "must be a number"),
        ("[scale]\nweight = 0", "scale.weight", "between 0.01 and 100"),
        ("[scale]\nweight = -1", "scale.weight", "between 0.01 and 100"),
        ("[scale]\nweight = inf", "scale.weight", "between 0.01 and 100"),
        ("[scale]\nweight = nan", "scale.weight", "between 0.01 and 100"),
    ],
)
def test_what_cannot_be_names_file_key_and_what_would_be_right(tmp_path: Path, spec: str, key: str, word: str) -> None:
    """One line is enough to mend it."""
    folder(tmp_path, "fn", spec)
    error = only_error(tmp_path)

    assert without_line(error).startswith(f"fn/function.toml: {key}"), error
    assert word in error
    assert "\n" not in error


@pytest.mark.parametrize(
    "spec",
    [
        'policy = "vision"',
        "[budget]\ncost = 1",
        "[batch]\nmax_size = 4",
        '[dev]\nreload = "full"',
        "[gpu]\ncount = 1",
        '[gpu]\ncount = 1\noptional = true\nmemory = "8GiB"',
        '[gpu]\nshare = "exclusive"',
        "[scale]\nconcurrency = 2",
    ],
)
def test_a_key_whose_effect_is_not_built_is_refused(tmp_path: Path, spec: str) -> None:
    """Never accepted and ignored: somebody would rely on it."""
    folder(tmp_path, "fn", spec)

    assert "not supported yet" in only_error(tmp_path)


def test_defaults_of_keys_that_are_not_built_may_be_written_out(tmp_path: Path) -> None:
    """They ask for nothing."""
    folder(tmp_path, "fn", '[gpu]\ncount = 0\nshare = "shared"\n[scale]\nconcurrency = 1\nweight = 1\n')

    assert len(read(tmp_path)[0]) == 1


def test_a_broken_function_leaves_the_others(tmp_path: Path) -> None:
    """One typo must not stop a node."""
    folder(tmp_path, "good")
    folder(tmp_path, "bad", "[limits\n")
    functions, invalid = read(tmp_path)

    assert [function.spec.name for function in functions] == ["good"]
    assert [report.name for report in invalid] == ["bad"]
    assert "line 1" in invalid[0].error


def test_a_name_taken_twice_names_both(tmp_path: Path) -> None:
    """Neither may win by chance."""
    folder(tmp_path, "a", 'name = "same"')
    folder(tmp_path, "b", 'name = "same"')
    functions, invalid = read(tmp_path)

    assert len(functions) == 1
    assert "a/" in invalid[0].error
    assert "b/" in invalid[0].error


def test_what_is_no_function_folder_is_refused_or_left_alone(tmp_path: Path) -> None:
    """Garbage, links that go round, too much, and things that only look like files."""
    folder(tmp_path, "binary", os.urandom(256))
    folder(tmp_path, "large", b"#" * (2**20 + 1))
    (folder(tmp_path, "loop") / "self").symlink_to(tmp_path / "loop")
    os.mkfifo(folder(tmp_path, "pipe") / "pipe")
    (folder(tmp_path, "much") / "weights.bin").write_bytes(b"\0" * (16 * 2**20 + 1))
    (tmp_path / "Bad Name").mkdir()
    (tmp_path / "Bad Name" / "function.toml").write_text("")
    (tmp_path / "Bad Name" / "handler.py").write_text(HANDLER)
    (tmp_path / "nospec").mkdir()
    (tmp_path / "nospec" / "handler.py").write_text(HANDLER)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("a note")
    (tmp_path / "__pycache__").mkdir()
    functions, invalid = read(tmp_path)

    assert functions == []
    names = {"binary", "large", "loop", "pipe", "much", "Bad Name", "nospec", "dangling"}
    assert {report.name for report in invalid} == names
    assert all(report.error for report in invalid)


def test_names_that_are_no_text_are_told_as_text(tmp_path: Path) -> None:
    """A report is printed and sent as JSON; one odd name must not take the others with it."""
    folder(tmp_path, "good")
    with open(os.path.join(os.fsencode(folder(tmp_path, "odd")), b"\xff.txt"), "w"):
        pass
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"\xfe"))
    functions, invalid = read(tmp_path)

    assert [function.spec.name for function in functions] == ["good"]
    assert b"xff.txt" in msgspec.json.encode(invalid)
    assert len(invalid) == 2


def test_a_folder_that_cannot_be_read_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    """The commonest mistake at the first start."""
    with pytest.raises(SpecInvalid, match="--functions"):
        read(tmp_path / "nowhere")


def test_the_version_is_of_spec_and_source_alone(tmp_path: Path) -> None:
    """The same on every machine, another for any change."""
    versions = []
    for n, (spec, handler) in enumerate([("", HANDLER), ("", HANDLER), ("# x", HANDLER), ("", HANDLER + "# x")]):
        root = tmp_path / str(n)
        root.mkdir()
        made = folder(root, "fn", spec, handler)
        (made / "__pycache__").mkdir()
        (made / "__pycache__" / "handler.pyc").write_bytes(os.urandom(8))
        versions.append(read(root)[0][0].version)

    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
    assert all(len(version) == 16 for version in versions)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=st.one_of(st.binary(max_size=200), st.text(max_size=200)), handler=st.one_of(st.binary(max_size=100), st.text(max_size=100)))
def test_no_content_makes_reading_raise(tmp_path: Path, spec: str | bytes, handler: str | bytes) -> None:
    """Whatever is on the disk, it is said of that function alone."""
    made = tmp_path / "fn"
    made.mkdir(exist_ok=True)
    (made / "function.toml").write_bytes(spec if isinstance(spec, bytes) else spec.encode("utf-8", "surrogatepass"))
    (made / "handler.py").write_bytes(handler if isinstance(handler, bytes) else handler.encode("utf-8", "surrogatepass"))
    functions, invalid = read(tmp_path)

    assert len(functions) + len(invalid) == 1


KEYS = st.sampled_from(
    [
        "name",
        "handler",
        "runtime",
        "tenant",
        "tags",
        "trigger",
        "gpu",
        "limits",
        "retry",
        "scale",
        "output",
        "budget",
        "env",
        "mount",
        "dependencies",
        "x",
    ]
)
INNER = st.sampled_from(
    [
        "subject",
        "count",
        "optional",
        "timeout",
        "memory",
        "cpus",
        "pids",
        "on",
        "max_attempts",
        "min_warm",
        "weight",
        "publish",
        "source",
        "target",
    ]
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["30s", "9" * 310 + "d", "0B", "a.>", "handler:handle"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(INNER | st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


DECLARED = Declaration(file="fn/function.toml", text=b"", name="fn", handler="handler:handle", entry=Path("fn"))


@settings(max_examples=300, deadline=None)
@given(table=st.dictionaries(KEYS, VALUES, max_size=4))
def test_no_table_makes_reading_raise(table: dict[str, object]) -> None:
    """Known keys with any value at all: an error that names the file in one line, or a function with a name that can be a subject."""
    said = ""
    try:
        spec = spec_of(DECLARED, table, PROFILES)
    except SpecInvalid as error:
        said = str(error)
    else:
        said = f"fn/function.toml: {spec.name}"

    assert said.startswith("fn/function.toml: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        ('stream = "FAAS_EVENTS"', "belongs to the runtime"),
        ('stream = "KV_x"', "belongs to the runtime"),
        ('stream = "my.orders"', "is no name of a stream"),
        ('stream = "ORDERS"\ndelivery = "at-most-once"', "leave one of the two out"),
    ],
)
def test_a_stream_that_cannot_be_meant_is_refused(tmp_path: Path, trigger: str, said: str) -> None:
    """Consuming from our own streams under another name would run what has been run."""
    folder(tmp_path, "one", f'[[trigger]]\nsubject = "a"\n{trigger}')

    assert only_error(tmp_path).startswith("one/function.toml: line 3: trigger[0].stream: ")
    assert said in only_error(tmp_path)
