"""The worker's loop: one function loaded once, then one invocation after the other, on a blocking socket. Knows no process but its own."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from faas.worker import loader, secrets, wire
from faas.worker.calls import Calls, TooLarge, Unencodable
from faas.worker.context import Checkpoint, Context, Reject, Retry
from faas.worker.logs import Log
from faas.worker.redaction import Redactor

TRACEBACK_CHARACTERS = 8 * 1024
DETAIL_CHARACTERS = 2000
READ_BYTES = 64 * 1024
_NOTHING: Mapping[str, Any] = {}
Hide = Callable[[str], str]
"""Takes the values of the function's secrets out of a text."""
_NO_CHECKPOINT = Checkpoint()


class Peer:
    """A connected socket that speaks frames; any thread may send. `directory` is where long messages are left."""

    def __init__(self, connection: socket.socket, directory: str, name: str) -> None:
        self._connection, self._directory, self._name = connection, directory, name
        self._reader = wire.FrameReader()
        self._sent = 0
        self._owner = os.getpid()
        self._sending = threading.Lock()
        self._holder = 0  # the thread that is sending

    def send(self, message: wire.SandboxMessage) -> None:
        """Send one message whole. Raises RuntimeError where `try_send` returns False."""
        if not self.try_send(message):
            raise RuntimeError("this process, or this moment, cannot speak to the node: it is a forked child, or a signal handler")

    def try_send(self, message: wire.SandboxMessage) -> bool:
        """False in a forked child, whose words would fall among its parent's, and where a signal handler interrupted a send of its own thread."""
        thread = threading.get_ident()  # not looked up under the lock: a signal between the two would wait for its own thread
        if os.getpid() != self._owner or self._holder == thread:
            return False
        with self._sending:
            self._holder = thread
            try:
                self._sent += 1
                self._connection.sendall(wire.encode(message, self._directory, f"{self._name}-w{self._sent}"))
            finally:
                self._holder = 0
        return True

    def receive_some(self) -> list[wire.HostMessage] | None:
        """What has come since the last call, perhaps no whole message yet; None once the node has closed the connection."""
        data = self._connection.recv(READ_BYTES)
        return [self._read(wire.decode_host(body)) for body in self._reader.feed(data)] if data else None

    def _read(self, message: wire.HostMessage) -> wire.HostMessage:
        if isinstance(message, wire.Spilled):
            spilled_message = wire.decode_host(wire.read_spilled(message, self._directory, sys.maxsize))
            if isinstance(spilled_message, wire.Load):
                return msgspec.structs.replace(spilled_message, secrets=message.secrets)
            return spilled_message
        if isinstance(message, wire.Invoke) and message.file:
            spilled = wire.Spilled(file=message.file, size=os.stat(os.path.join(self._directory, message.file)).st_size)
            return msgspec.structs.replace(message, data=wire.read_spilled(spilled, self._directory, sys.maxsize), file="")
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
    log = Log(peer.try_send)
    calls = Calls()
    function: _Function | None = None
    while (messages := peer.receive_some()) is not None:
        for message in messages:
            answer: wire.SandboxMessage
            if isinstance(message, wire.Load) and function is None:
                log.install()
                calls.listen()
                log.redactor = Redactor({name: [value.encode("utf-8", "surrogatepass")] for name, value in message.secrets.items()})
                answer, function = _load(message, directory, peer=peer, calls=calls, hide=log.redactor.text)
                log.adopt_structlog()
            elif isinstance(message, wire.Invoke) and function is not None:
                log.renew()
                answer = function.invoke(message)
                log.adopt_structlog()
            elif isinstance(message, wire.Close):
                if function is not None:
                    function.close()
                return
            else:
                raise wire.WireError(f"{type(message).__name__} out of turn")
            log.finish()
            _flush()
            if os.getpid() != own:
                os._exit(0)  # a child that the handler forked and let return: the answer is its parent's to give
            peer.send(answer)
            if function is None:
                return


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BaseException:  # the handler may have closed what it prints to, or put anything in its place: the answer stands
        return


def _load(
    message: wire.Load, directory: str, *, peer: Peer, calls: Calls, hide: Hide
) -> tuple[wire.Loaded | wire.LoadFailed, _Function | None]:
    scratch = os.path.join(directory, "tmp")
    os.makedirs(scratch, exist_ok=True)
    os.chdir(scratch)
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    os.environ.update(message.env)

    def send(said: wire.Said) -> None:
        if not isinstance(said, wire.Log):
            raise RuntimeError("in load there is no event yet: publish and count in handle")
        peer.send(said)

    usage = _Usage()
    try:
        own = secrets.receive(message.secrets, message.secrets_folder)
        message = msgspec.structs.replace(message, secrets={})  # one copy is enough: what the handler has
        handler = loader.load(message, directory, context=lambda: _context(message, own, send), run=calls.run)
    except BaseException as error:  # the author's code: SystemExit and KeyboardInterrupt end the load like any error
        load_us, cpu_us, memory = usage.read()
        detail, trace = _sentence(error, hide), _trace(error, hide)
        return wire.LoadFailed(detail=detail, traceback=trace, load_us=load_us, cpu_us=cpu_us, memory_peak_bytes=memory), None
    load_us, cpu_us, memory = usage.read()
    answer = wire.Loaded(
        load_us=load_us,
        cpu_us=cpu_us,
        memory_peak_bytes=memory,
        input_schema=handler.input_schema,
        output_schema=handler.output_schema,
    )
    return answer, _Function(message, handler, own, peer=peer, calls=calls, hide=hide)


class _Function:
    """A loaded function; runs one attempt at a time."""

    def __init__(self, loaded: wire.Load, handler: loader.Handler, own: secrets.Secrets, *, peer: Peer, calls: Calls, hide: Hide) -> None:
        self._loaded, self._handler, self._secrets = loaded, handler, own
        self._peer, self._calls, self._hide = peer, calls, hide

    def invoke(self, message: wire.Invoke) -> wire.Result | wire.Failed:
        """Every end as a message: whatever the author's code does short of ending the process."""
        usage, handler, calls, hide = _Usage(), self._handler, self._calls, self._hide
        calls.renew()
        context = _context(self._loaded, self._secrets, self._peer.send)
        context._hide = hide
        meters = context.meters

        def failed(reason: wire.Reason, detail: str, *, trace: str = "", after_s: float | None = None) -> wire.Failed:
            run_us, cpu_us, memory = usage.read()
            return wire.Failed(
                reason=reason,
                detail=wire.encodable(hide(detail)[:DETAIL_CHARACTERS]),
                traceback=trace,
                retry_after_s=None if after_s is None else min(after_s, wire.RETRY_LIMIT_S),
                run_us=run_us,
                cpu_us=cpu_us,
                memory_peak_bytes=memory,
                meters=meters,
            )

        try:
            try:
                event = handler.decode(message)
            except (msgspec.DecodeError, RecursionError, ValueError) as error:
                detail = (
                    _sentence(error, hide, named=False) if message.data else "the payload is empty, and the function takes one - at `$`"
                )
                return failed("payload_invalid", detail)
            self._put_into(context, message)
            usage.began_ns = time.monotonic_ns()  # the execution clock; what came before was not the author's
            on_chunk = self._send_chunk if message.stream else None
            returned = handler.call(event, context)
            body, content_type = calls.finish(returned, limit_bytes=self._loaded.result_limit_bytes, on_chunk=on_chunk)
        except Reject as error:
            return failed("rejected_by_handler", error.reason)
        except Retry as error:
            return failed("error", _sentence(error, hide), after_s=error.after_s)
        except Unencodable as error:
            return failed("result_invalid", f"the result cannot be encoded: {error}")
        except TooLarge as error:
            return failed("result_too_large", str(error))
        except BaseException as error:  # the author's code: SystemExit, KeyboardInterrupt and MemoryError are failures of this attempt
            return failed("error", _sentence(error, hide), trace=_trace(error, hide))
        finally:
            context._over = True
        run_us, cpu_us, memory = usage.read()
        return wire.Result(body=body, content_type=content_type, run_us=run_us, cpu_us=cpu_us, memory_peak_bytes=memory, meters=meters)

    def _put_into(self, context: Context, message: wire.Invoke) -> None:
        context.invocation_id, context.attempt = message.invocation_id, message.attempt
        context._is_cancelled = self._calls.is_cancelled
        context._caused_by = message.extensions.get("traceparent", "")
        context._deadline_monotonic = time.monotonic() + message.remaining_s
        context._make_event = functools.partial(loader.event_of, message)

    def _send_chunk(self, data: bytes, content_type: str) -> None:
        self._peer.send(wire.Chunk(data=data, content_type=content_type))

    def close(self) -> None:
        """Run the handler's own `close`, and end its event loop."""
        if self._handler.close is not None:
            closing = self._handler.close()
            if hasattr(closing, "__await__"):
                self._calls.run(closing)
        self._calls.close()


def _context(loaded: wire.Load, own: secrets.Secrets, send: Callable[[wire.Said], None]) -> Context:
    return Context(
        function=loaded.function,
        tenant=loaded.tenant,
        tags=loaded.tags,
        device=_device(),
        mounts={target: Path(path) for target, path in loaded.mounts.items()} if loaded.mounts else _NOTHING,
        secrets=own,
        checkpoint=_NO_CHECKPOINT,
        _send=send,
    )


def _device() -> str:
    return _torch_device() if "torch" in sys.modules else "cpu"


@functools.cache
def _torch_device() -> str:
    torch: Any = sys.modules["torch"]
    return "cuda" if torch.cuda.is_available() else "cpu"


def _sentence(error: BaseException, hide: Hide, *, named: bool = True) -> str:
    try:
        text = str(error)
    except Exception:  # an author's __str__ may raise too
        text = "its message cannot be shown"
    return wire.encodable(hide(f"{type(error).__name__}: {text}" if named else text)[:DETAIL_CHARACTERS])


def _trace(error: BaseException, hide: Hide) -> str:
    """The author's frames, causes included, the innermost kept where it is too long."""
    whole = link = traceback.TracebackException.from_exception(error)
    while link is not None:
        link.stack[:] = [frame for frame in link.stack if f"{os.sep}faas{os.sep}worker{os.sep}" not in frame.filename]
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    return wire.encodable(hide("".join(whole.format()))[-TRACEBACK_CHARACTERS:])
