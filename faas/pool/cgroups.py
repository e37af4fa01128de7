"""Memory, CPU and process limits of one worker, where control groups are writable (v1 or v2). Knows no function and no socket."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import structlog

log = structlog.get_logger()

MOUNT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids"}
"""Our word for a limit -> the kernel's controller."""


@dataclass(slots=True)
class Group:
    """The group of one worker: a folder for each controller (v1), or one for all (v2)."""

    folders: dict[str, Path]
    unified: bool

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
        gone = True
        for folder in dict.fromkeys(self.folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone


@dataclass(slots=True)
class Cgroups:
    """The node's own group, and whether it may make others in it. `roots`: our word for a limit -> folder."""

    roots: dict[str, Path] = field(default_factory=dict)
    unified: bool = False

    @classmethod
    def open(cls, node: str) -> Cgroups:
        """Find what is writable here, and remove what a node of this name left behind."""
        for unified in (False, True):
            roots = {}
            for limit, controller in CONTROLLERS.items():
                folder = _own_folder(controller, unified=unified)
                if folder is not None and _make(folder / f"faas-{node}", controller, unified=unified):
                    roots[limit] = folder / f"faas-{node}"
            if roots:
                found = cls(roots, unified)
                found._sweep()
                return found
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
        return Group(folders, self.unified) if folders else None

    def close(self) -> None:
        """Remove the node's own group; what is not empty stays for the next start."""
        self._sweep()
        for root in dict.fromkeys(self.roots.values()):
            with contextlib.suppress(OSError):
                root.rmdir()

    def _sweep(self) -> None:
        for root in dict.fromkeys(self.roots.values()):
            for folder in root.iterdir():
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        folder.rmdir()


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
