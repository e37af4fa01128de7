"""Memory, CPU and process limits of one worker, where control groups are writable (v1 or v2). Knows no function and no socket."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import structlog

log = structlog.get_logger()

MOUNT = Path("/sys/fs/cgroup")
PREFIX = "faas-"
"""Of a node's own group, with its name and pid behind: the group of a pid that is no more is swept."""
CPU_PERIOD_US = 100_000
CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids"}
"""Our word for a limit -> the kernel's controller."""


@dataclass(slots=True)
class Group:
    """The group of one worker: a folder for each controller (v1), or one for all (v2)."""

    folders: dict[str, Path]
    unified: bool
    owner: Cgroups

    def add(self, pid: int) -> None:
        """Put a process into it, and all that it starts from now on."""
        for folder in dict.fromkeys(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def limit(self, *, memory_bytes: int, cpus: float, pids: int) -> None:
        """Set the limits; a controller that is not there is left out."""
        quota_us = max(1000, round(cpus * CPU_PERIOD_US))
        if self.unified:
            values = {"memory": [("memory.max", memory_bytes), ("memory.swap.max", 0)], "pids": [("pids.max", pids)]}
            values["cpus"] = [("cpu.max", f"{quota_us} {CPU_PERIOD_US}")]  # type: ignore[list-item]
        else:
            values = {
                "memory": [("memory.limit_in_bytes", memory_bytes), ("memory.memsw.limit_in_bytes", memory_bytes)],
                "pids": [("pids.max", pids)],
                "cpus": [("cpu.cfs_quota_us", quota_us)],
            }
        for name, settings in values.items():
            for file, value in settings:
                if name in self.folders and (self.folders[name] / file).exists():
                    (self.folders[name] / file).write_text(str(value))

    def oom_kills(self) -> int:
        """How many processes of the group the memory limit has killed."""
        folder = self.folders.get("memory")
        if folder is None:
            return 0
        try:
            lines = (folder / ("memory.events" if self.unified else "memory.oom_control")).read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def remove(self) -> bool:
        """Delete it; False while a process of it has not quite ended."""
        left = [folder for folder in dict.fromkeys(self.folders.values()) if not _remove(folder)]
        return not left

    def discard(self) -> None:
        """Its worker has ended: delete it now, or with the next one that ends."""
        self.owner.discard(self)


@dataclass(slots=True)
class Cgroups:
    """The node's own group, and whether it may make others in it. `roots`: our word for a limit -> folder."""

    roots: dict[str, Path] = field(default_factory=dict)
    unified: bool = False
    _ended: list[Group] = field(default_factory=list)

    @classmethod
    def open(cls, node: str) -> Cgroups:
        """Find what is writable here, and remove what nodes that are no more left behind."""
        for unified in (False, True):
            roots = {}
            for limit, controller in CONTROLLERS.items():
                folder = _own_folder(controller, unified=unified)
                if folder is None:
                    continue
                _sweep_dead_nodes(folder)
                own = folder / f"{PREFIX}{node}.{os.getpid()}"
                if _make(own, controller, unified=unified):
                    roots[limit] = own
            if roots:
                return cls(roots, unified)
        return cls()

    @property
    def enforced(self) -> frozenset[str]:
        """Which of "memory", "cpus" and "pids" hold here."""
        return frozenset(self.roots)

    def group(self, worker: str) -> Group | None:
        """A new group for one worker, or None where none can be made."""
        folders = {limit: root / worker for limit, root in self.roots.items()}
        try:
            for folder in folders.values():
                folder.mkdir(exist_ok=True)
        except OSError as error:
            log.warning("cgroup.failed", worker=worker, error=str(error))
            return None
        return Group(folders, self.unified, self) if folders else None

    def discard(self, group: Group) -> None:
        """Delete a group, and those whose last process had not quite ended when they were discarded."""
        self._ended = [ended for ended in (*self._ended, group) if not ended.remove()]

    def close(self) -> None:
        """Kill whatever is left in the node's groups and remove them; what does not go at once is left to the next node."""
        for root in dict.fromkeys(self.roots.values()):
            _sweep_node(root)


def _sweep_dead_nodes(folder: Path) -> None:
    for node in folder.glob(f"{PREFIX}*.*"):
        pid = node.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _sweep_node(node)


def _sweep_node(node: Path) -> None:
    with contextlib.suppress(OSError):
        for group in [*(folder for folder in node.iterdir() if folder.is_dir()), node]:
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _remove(group)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _own_folder(controller: str, *, unified: bool) -> Path | None:
    """The folder of this process in a controller's hierarchy. Source: cgroups(7)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if unified and not controllers:
            root = MOUNT if (MOUNT / "cgroup.controllers").exists() else MOUNT / "unified"
        elif not unified and controller in controllers.split(","):
            root = MOUNT / controllers if (MOUNT / controllers).is_dir() else MOUNT / controller
        else:
            continue
        return next((folder for folder in (root / path.lstrip("/"), root) if folder.is_dir()), None)
    return None


def _make(folder: Path, controller: str, *, unified: bool) -> bool:
    """Whether limits can be set below this folder, which is made."""
    try:
        folder.mkdir(exist_ok=True)
        if unified:
            for parent in (folder.parent, folder):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        probe = folder / f"probe-{os.getpid()}"
        probe.mkdir()
        writable = any(
            (probe / file).exists() for file in ("memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "pids.max")
        )
        probe.rmdir()
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return False
    return writable
