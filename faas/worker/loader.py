"""From source files to a callable: writes them once, imports the handler, and makes the decoder that its annotation asks for."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import sys
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from faas.worker import overlay, wire
from faas.worker.context import Context, Event, Result

Decode = Callable[[wire.Invoke], Any]


class Unsupported(Exception):
    """What the spec names is no handler."""


@dataclasses.dataclass(slots=True)
class Handler:
    """A loaded function. `call` takes the decoded event and the context, and returns what the handler does: a value, a coroutine, a generator of
    either kind. `close` may be None, and return a coroutine."""

    call: Callable[[Any, Context], Any]
    decode: Decode
    close: Callable[[], Any] | None
    input_schema: str
    output_schema: str


def load(message: wire.Load, directory: str, *, context: Callable[[], Context], run: Callable[[Any], Any]) -> Handler:
    """Write, import, construct, run `load`; `run` takes the coroutine of an async one to its end. Whatever the author's code raises passes through."""
    code = _write(message, directory)
    overlay.put_on_path(code, message.overlay)
    module_name, _, attribute = message.handler.partition(":")
    _make_way(code, module_name.partition(".")[0])
    target = getattr(importlib.import_module(module_name), attribute)
    close = None
    if inspect.isclass(target):
        instance: Any = target()
        if hasattr(instance, "load"):
            loading = instance.load(context())  # made now, since its device depends on what was imported
            if inspect.iscoroutine(loading):
                run(loading)
        target, close = instance.handle, getattr(instance, "close", None)
    if not callable(target):
        raise Unsupported(f"{message.handler} is {type(target).__name__}, no function and no class")
    hints = _hints(target)
    positional = [p for p in inspect.signature(target).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional:
        raise Unsupported(f"{message.handler} takes no event; write `def handle(event)` or `def handle(event, ctx)`")
    annotation = hints.get(positional[0].name, inspect.Parameter.empty)
    call = target if len(positional) > 1 else lambda event, ctx: target(event)
    return Handler(
        call=call,
        decode=decoder(annotation),
        close=close,
        input_schema=_schema(annotation),
        output_schema=_schema(_returned(hints.get("return", inspect.Parameter.empty))),
    )


def _write(message: wire.Load, directory: str) -> str:
    """The folder of this version's code; whole before its name exists, so that two workers may write it at once."""
    folder = os.path.join(directory, "code", message.version)
    if os.path.isdir(folder):
        return folder
    unfinished = f"{folder}.{os.urandom(8).hex()}"  # no pid: in namespaces of their own two workers have the same
    for file in message.files:
        parts = file.path.split("/")
        if not all(parts) or any(part in (".", "..") for part in parts):
            raise wire.WireError(f"refused file {file.path[:80]!r}")
        path = os.path.join(unfinished, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(file.data)
    os.makedirs(unfinished, exist_ok=True)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not os.path.isdir(folder):
            raise
    return folder


def _make_way(code: str, module: str) -> None:
    """A function's own module wins over one of that name that the template has imported, as it would in a fresh interpreter."""
    if any(os.path.exists(os.path.join(code, name)) for name in (module, f"{module}.py")):
        for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
            del sys.modules[name]


def _hints(target: Any) -> Mapping[str, Any]:
    """Annotations as types; one that cannot be resolved counts as none."""
    function = target.__func__ if inspect.ismethod(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # an annotation is the author's code too: it may name what exists only for a type checker
        return {name: kind for name, kind in getattr(function, "__annotations__", {}).items() if not isinstance(kind, str)}


# ---------------------------------------------------------------- decoding


def decoder(annotation: Any) -> Decode:
    """What turns a payload into the handler's first argument, strictly. Its decode raises msgspec.DecodeError naming the field."""
    if annotation in (inspect.Parameter.empty, Any, object):
        return untyped
    if annotation is bytes:
        return lambda invoke: invoke.data
    if annotation is str:
        return _text
    if annotation is Event:
        return event_of
    typed: msgspec.json.Decoder[Any] = msgspec.json.Decoder(annotation)
    return lambda invoke: typed.decode(invoke.data)


def untyped(invoke: wire.Invoke) -> Any:
    """A JSON value where the content type is JSON, else bytes."""
    return msgspec.json.decode(invoke.data) if is_json(invoke.datacontenttype) else invoke.data


def _text(invoke: wire.Invoke) -> str:
    if is_json(invoke.datacontenttype):
        return msgspec.json.decode(invoke.data, type=str)
    try:
        return invoke.data.decode()
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"the payload is no UTF-8 text: {error.reason} at byte {error.start} - at `$`") from error


def event_of(invoke: wire.Invoke) -> Event:
    """The whole event, its data as an unannotated parameter would have it."""
    return Event(
        id=invoke.id,
        source=invoke.source,
        type=invoke.event_type,
        subject=invoke.subject,
        time=_time(invoke.time),
        datacontenttype=invoke.datacontenttype,
        dataschema=invoke.dataschema,
        extensions=invoke.extensions,
        data=untyped(invoke),
    )


def _time(text: str) -> datetime | None:
    """An aware datetime; None where there is none, or what there is cannot be read."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def is_json(content_type: str) -> bool:
    """application/json, text/json and everything that ends in +json."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("application/json", "text/json") or kind.endswith("+json")


# ---------------------------------------------------------------- encoding


def encode(result: Any) -> tuple[bytes, str]:
    """(body, content type) of what a handler returned. Raises TypeError, ValueError or the like where it cannot be encoded."""
    if isinstance(result, Result):
        data = result.data.encode() if isinstance(result.data, str) else bytes(memoryview(result.data))
        content_type = str(result.content_type)
        if not content_type.isascii() or not content_type.isprintable():
            raise ValueError(f"content_type {content_type!r} is no header value")  # a line break would make another header of it
        return data, content_type
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), "application/octet-stream"
    return msgspec.json.encode(result), "application/json"


def _returned(annotation: Any) -> Any:
    """What the body of an outcome holds: of a generator the array of its items, none where it is joined text or bytes."""
    if typing.get_origin(annotation) in (Generator, Iterator, Iterable, AsyncGenerator, AsyncIterator, AsyncIterable):
        (item, *_) = typing.get_args(annotation) or (Any,)
        return inspect.Parameter.empty if item in (Any, str, bytes, Result) else list[item]  # type: ignore[valid-type]
    return annotation


def _schema(annotation: Any) -> str:
    """JSON Schema text, "" where there is none."""
    if annotation in (inspect.Parameter.empty, Any, object, bytes, Event, Result, None):
        return ""
    try:
        return json.dumps(msgspec.json.schema(annotation))
    except Exception:  # no schema is no reason not to run
        return ""
