"""The worker's loop: one function loaded once, then one invocation after the other, on a blocking socket. Knows no process but its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import socket
import sys
import time
import traceback
from typing import Any

import msgspec

from faas.worker import loader, wire
from faas.worker.context import Context, Reject, Retry

TRACEBACK_CHARACTERS = 8 * 1024
DETAIL_CHARACTERS = 2000
READ_BYTES = 64 * 1024


class Peer:
    """A connected socket that speaks frames. `directory` is where long messages are left."""

    def __init__(self, connection: socket.socket, directory: str, name: str) -> None:
        self._connection, self._directory, self._name = connection, directory, name
        self._reader = wire.FrameReader()
        self._sent = 0

    def send(self, message: wire.SandboxMessage) -> None:
        """Send one message whole."""
        self._sent += 1
        self._connection.sendall(wire.encode(message, self._directory, f"{self._name}-w{self._sent}"))

    def receive_some(self) -> list[wire.HostMessage] | None:
        """What has come since the last call, perhaps no whole message yet; None once the node has closed the connection."""
        data = self._connection.recv(READ_BYTES)
        return [self._read(wire.decode_host(body)) for body in self._reader.feed(data)] if data else None

    def _read(self, message: wire.HostMessage) -> wire.HostMessage:
        if isinstance(message, wire.Spilled):
            return wire.decode_host(wire.read_spilled(message, self._directory, sys.maxsize))
        return message


class _Usage:
    """What this process uses from here on: CPU of itself and of children it waited for, peak memory, time."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(_clear_refs(), b"5", 0)  # resets the peak resident size: an attempt does not answer for the one before
        self._cpu_ns = _cpu_ns()
        self.began_ns = time.monotonic_ns()

    def read(self) -> tuple[int, int, int]:
        """Elapsed us, CPU us, peak bytes so far."""
        elapsed_ns, cpu_ns = time.monotonic_ns() - self.began_ns, _cpu_ns() - self._cpu_ns
        return elapsed_ns // 1000, cpu_ns // 1000, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def _clear_refs() -> int:
    """Opened once: this is on the way of every attempt. Source: proc_pid_clear_refs(5)."""
    return os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)


def _cpu_ns() -> int:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + int((children.ru_utime + children.ru_stime) * 1e9)


def serve(peer: Peer, directory: str) -> None:
    """Wait to be loaded, then run what comes, until the node closes or says so."""
    own = os.getpid()
    handler: loader.Handler | None = None
    loaded: wire.Load | None = None
    while (messages := peer.receive_some()) is not None:
        for message in messages:
            answer: wire.SandboxMessage
            if isinstance(message, wire.Load) and handler is None:
                answer, handler = _load(message, directory)
                loaded = message
            elif isinstance(message, wire.Invoke) and handler is not None and loaded is not None:
                answer = _invoke(handler, loaded, message)
            elif isinstance(message, wire.Close):
                if handler is not None and handler.close is not None:
                    handler.close()
                return
            else:
                raise wire.WireError(f"{type(message).__name__} out of turn")
            _flush()
            if os.getpid() != own:
                os._exit(0)  # a child that the handler forked and let return: the answer is its parent's to give
            peer.send(answer)
            if handler is None:
                return


def _load(message: wire.Load, directory: str) -> tuple[wire.SandboxMessage, loader.Handler | None]:
    scratch = os.path.join(directory, "tmp")
    os.makedirs(scratch, exist_ok=True)
    os.chdir(scratch)
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    _log_to_stderr()
    usage = _Usage()
    try:
        handler = loader.load(message, directory, functools.partial(_context, message, None))
    except BaseException as error:  # the author's code: SystemExit and KeyboardInterrupt end the load like any error
        load_us, cpu_us, memory = usage.read()
        detail = _sentence(error)
        return wire.LoadFailed(detail=detail, traceback=_trace(error), load_us=load_us, cpu_us=cpu_us, memory_peak_bytes=memory), None
    load_us, cpu_us, memory = usage.read()
    answer = wire.Loaded(
        load_us=load_us,
        cpu_us=cpu_us,
        memory_peak_bytes=memory,
        input_schema=handler.input_schema,
        output_schema=handler.output_schema,
    )
    return answer, handler


def _invoke(handler: loader.Handler, loaded: wire.Load, message: wire.Invoke) -> wire.Result | wire.Failed:
    usage = _Usage()

    def failed(reason: wire.Reason, detail: str, *, trace: str = "", after_s: float | None = None) -> wire.Failed:
        run_us, cpu_us, memory = usage.read()
        return wire.Failed(
            reason=reason,
            detail=_encodable(detail[:DETAIL_CHARACTERS]),
            traceback=trace,
            retry_after_s=None if after_s is None else min(after_s, wire.RETRY_LIMIT_S),
            run_us=run_us,
            cpu_us=cpu_us,
            memory_peak_bytes=memory,
        )

    try:
        try:
            event = handler.decode(message)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            detail = _sentence(error, named=False) if message.data else "the payload is empty, and the function takes one - at `$`"
            return failed("payload_invalid", detail)
        context = _context(loaded, message)
        usage.began_ns = time.monotonic_ns()  # the execution clock; what came before was not the author's
        result = handler.call(event, context)
    except Reject as error:
        return failed("rejected_by_handler", error.reason)
    except Retry as error:
        return failed("error", _sentence(error), after_s=error.after_s)
    except BaseException as error:  # the author's code: SystemExit, KeyboardInterrupt and MemoryError are failures of this attempt
        return failed("error", _sentence(error), trace=_trace(error))
    run_us = usage.read()[0]
    try:
        body, content_type = loader.encode(result)
    except Exception as error:  # whatever an author's type raises while it is encoded
        return failed("result_invalid", f"the result cannot be encoded: {_sentence(error)}")
    if len(body) > loaded.result_limit_bytes:
        detail = f"the result has {len(body)} bytes; limits.payload of the function is {loaded.result_limit_bytes}"
        return failed("result_too_large", detail)
    _, cpu_us, memory = usage.read()
    return wire.Result(body=body, content_type=content_type, run_us=run_us, cpu_us=cpu_us, memory_peak_bytes=memory)


def _context(loaded: wire.Load, message: wire.Invoke | None) -> Context:
    context = Context(function=loaded.function, tenant=loaded.tenant, tags=loaded.tags, device=_device())
    if message is not None:
        context.invocation_id, context.attempt = message.invocation_id, message.attempt
        context._deadline_monotonic = time.monotonic() + message.remaining_s
        context._make_event = functools.partial(loader.event_of, message)
    return context


def _device() -> str:
    return _torch_device() if "torch" in sys.modules else "cpu"


@functools.cache
def _torch_device() -> str:
    torch: Any = sys.modules["torch"]
    return "cuda" if torch.cuda.is_available() else "cpu"


def _sentence(error: BaseException, *, named: bool = True) -> str:
    try:
        text = str(error)
    except Exception:  # an author's __str__ may raise too
        text = "its message cannot be shown"
    return _encodable((f"{type(error).__name__}: {text}" if named else text)[:DETAIL_CHARACTERS])


def _trace(error: BaseException) -> str:
    """The author's frames, causes included, the innermost kept where it is too long."""
    whole = link = traceback.TracebackException.from_exception(error)
    while link is not None:
        link.stack[:] = [frame for frame in link.stack if f"{os.sep}faas{os.sep}worker{os.sep}" not in frame.filename]
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    return _encodable("".join(whole.format())[-TRACEBACK_CHARACTERS:])


def _encodable(text: str) -> str:
    """Without what UTF-8 cannot hold: an author's message may quote a file name with half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _log_to_stderr() -> None:
    """Where `ctx.log` writes, whatever the author does to the root logger."""
    log, handler = logging.getLogger("faas"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # a handler may have closed or replaced them
        return
