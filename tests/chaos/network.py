"""A switch in a network namespace of its own, and places on it whose cable can be pulled and put back: partitions that no one is told of.

The namespaces have no names: they are held open by this process alone and vanish with it, whatever happens. Nothing of the machine's own
network is touched. Needs root, or at least CAP_SYS_ADMIN and CAP_NET_ADMIN, and `ip` and `nsenter`; `Network.open` says what is missing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

CLONE_NEWNET = 0x40000000
SUBNET = "10.231.0"
_libc = ctypes.CDLL(None, use_errno=True)


class NoNetwork(Exception):
    """Why namespaces cannot be made here."""


@dataclass
class Network:
    """`with Network.open("one", "two") as network`: places that reach one another until `cut`."""

    _switch: int
    _places: dict[str, int] = field(default_factory=dict)  # name -> its namespace

    @classmethod
    @contextmanager
    def open(cls, *places: str) -> Iterator[Network]:
        """Raises NoNetwork with the reason."""
        for program in ("ip", "nsenter"):
            if shutil.which(program) is None:
                raise NoNetwork(f"{program} is not installed here (packages iproute2 and util-linux)")
        network = cls(_namespace())
        try:
            network._lay(places)
            yield network
        finally:
            for namespace in (network._switch, *network._places.values()):
                os.close(namespace)

    def _lay(self, places: Iterable[str]) -> None:
        try:
            self._ip("link", "add", "name", "switch", "type", "bridge")
            self._ip("link", "set", "dev", "switch", "up")
            for name in places:
                self._plug(name)
        except subprocess.CalledProcessError as error:
            raise NoNetwork(f"{' '.join(error.cmd[2:])}: {error.stderr.decode().strip()}") from error

    def _plug(self, name: str) -> None:
        """A new place: a namespace of its own, a cable to the switch, and an address."""
        namespace = self._places[name] = _namespace()
        self._ip("link", "add", "name", name, "type", "veth", "peer", "name", "cable", "netns", _file(namespace))
        self._ip("link", "set", "dev", name, "master", "switch", "up")
        self._ip("address", "add", f"{self.address(name)}/24", "dev", "cable", inside=namespace)
        for device in ("lo", "cable"):
            self._ip("link", "set", "dev", device, "up", inside=namespace)

    def address(self, name: str) -> str:
        return f"{SUBNET}.{list(self._places).index(name) + 1}"

    def way(self, name: str) -> tuple[str, ...]:
        """What a command begins with to run in a place; the process keeps its pid, and sees the file systems that we see."""
        return ("nsenter", f"--net={_file(self._places[name])}", "--")

    def cut(self, name: str) -> None:
        """Pull the cable: what is sent is lost, and nobody is told."""
        self._ip("link", "set", "dev", name, "down")

    def mend(self, name: str) -> None:
        self._ip("link", "set", "dev", name, "up")

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread, and what it starts, is in a place: sockets that are made meanwhile belong to it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(self._places[name])
            yield
        finally:
            _enter(home)
            os.close(home)

    def _ip(self, *words: str, inside: int | None = None) -> None:
        where = _file(self._switch if inside is None else inside)
        subprocess.run(["nsenter", f"--net={where}", "ip", *words], check=True, capture_output=True)


def _namespace() -> int:
    """A descriptor of a new one; made in a thread, which is left in it and ends."""

    def make() -> int:
        if _libc.unshare(CLONE_NEWNET):
            raise NoNetwork(f"no network namespace may be made here: {os.strerror(ctypes.get_errno())}")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise NoNetwork(f"the network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")


def _file(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"
