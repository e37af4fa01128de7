"""The registry on a real bus: who may change what a function is, and what can be gone back to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from faas.bus.connection import Bus
from faas.bus.keyvalue import KeyValue
from faas.bus.objects import ObjectStore
from faas.errors import DeployRefused, NoSuchFunction, SpecInvalid
from faas.model import FunctionVersion, ProfileLimits, RuntimeProfile
from faas.registry.packing import pack, unpack
from faas.registry.registry import HISTORY_LIMIT, Registry
from faas.registry.spec import read_functions
from faas.units import Size

PROFILES = {"standard": RuntimeProfile(name="standard", limits=ProfileLimits(memory_bytes=Size(2**30), cpus=2, pids=64))}


def version(root: Path, tenant: str, n: int, *, name: str = "f", spec: str = "") -> FunctionVersion:
    """One version of a function of this tenant: another `n`, another version."""
    made = root / f"{n}" / name
    made.mkdir(parents=True, exist_ok=True)
    (made / "function.toml").write_text(f'tenant = "{tenant}"\n{spec}')
    (made / "handler.py").write_text(f"def handle(event):\n    return {n}\n")
    reading = read_functions(made.parent, PROFILES)
    assert reading.invalid == []
    return reading.functions[0]


@pytest.fixture
async def registry(bus: Bus) -> Registry:
    made = Registry(bus)
    await made.ensure(replicas=1, bundle_bytes=2**24)
    return made


async def served(registry: Registry, tenant: str) -> dict[str, str]:
    """The version of each function of the tenant that is not withdrawn."""
    return {r.name: r.version for r in await registry.registrations() if r.tenant == tenant and not r.withdrawn}


async def test_a_deployed_version_can_be_had_by_a_node_without_the_folder(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """Code, declaration, lock, example: the same version, byte for byte."""
    function = version(tmp_path, tenant, 1, spec='[[trigger]]\nsubject = "a.b"\n')

    assert await registry.deploy(function, by="me")
    (known,) = [r for r in await registry.registrations() if r.tenant == tenant]
    again = unpack(await registry.bundle(known.current), known.version, PROFILES, mounts=())
    assert again == function


async def test_what_is_served_already_is_not_deployed_again(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """A history of the same version a hundred times would say nothing."""
    function = version(tmp_path, tenant, 1)

    assert await registry.deploy(function, by="me")
    assert not await registry.deploy(function, by="you")


async def test_a_deploy_of_what_is_served_brings_a_bundle_back_that_was_lost(
    bus: Bus, registry: Registry, tmp_path: Path, tenant: str
) -> None:
    """Nodes that miss it say so, and what they say to do has to help."""
    function = version(tmp_path, tenant, 1)
    await registry.deploy(function, by="me")
    (before,) = [one for one in await registry.registrations() if one.tenant == tenant]
    await ObjectStore(bus, "FAAS_BUNDLES").delete(before.current.bundle)
    with pytest.raises(SpecInvalid, match="deploy the function again"):
        await registry.bundle(before.current)
    revision = [change.revision async for change in registry.changes(0)][-1]

    assert await registry.deploy(function, by="me")
    assert unpack(await registry.bundle(before.current), function.version, PROFILES, mounts=()).version == function.version
    assert [change.key async for change in registry.changes(revision)] == [(tenant, "f")]
    assert not await registry.deploy(function, by="me")


async def test_of_two_deploys_at_once_one_wins_and_the_other_is_told(bus: Bus, registry: Registry, tmp_path: Path, tenant: str) -> None:
    """Silently deploying over what somebody has just deployed would lose his."""
    functions = [version(tmp_path, tenant, n) for n in range(4)]
    ends = await asyncio.gather(*(Registry(bus).deploy(f, by=f"user{n}") for n, f in enumerate(functions)), return_exceptions=True)
    refusals = [end for end in ends if isinstance(end, DeployRefused)]

    assert ends.count(True) + len(refusals) == 4
    assert ends.count(True) >= 1
    assert all("in the same moment" in str(refusal) and "by user" in str(refusal) for refusal in refusals)


async def test_a_roll_back_goes_to_the_version_before_and_again_to_where_it_was(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """As elsewhere: twice is undone."""
    one, two = version(tmp_path, tenant, 1), version(tmp_path, tenant, 2)
    for function in (one, two):
        await registry.deploy(function, by="me")

    assert (await registry.roll_back((tenant, "f"), by="me")).version == one.version
    assert await served(registry, tenant) == {"f": one.version}
    assert (await registry.roll_back((tenant, "f"), by="me")).version == two.version


async def test_a_roll_back_to_a_version_takes_its_beginning(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """Nobody types sixteen digits."""
    functions = [version(tmp_path, tenant, n) for n in range(3)]
    for function in functions:
        await registry.deploy(function, by="me")

    assert (await registry.roll_back((tenant, "f"), functions[0].version[:8], by="me")).version == functions[0].version


async def test_a_roll_back_to_nothing_says_what_there_is(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """One sentence with the versions to choose from."""
    function = version(tmp_path, tenant, 1)
    await registry.deploy(function, by="me")

    with pytest.raises(DeployRefused, match=f"no version before this one; there are: {function.version}"):
        await registry.roll_back((tenant, "f"), by="me")
    with pytest.raises(DeployRefused, match=f"no version zz; there are: {function.version}"):
        await registry.roll_back((tenant, "f"), "zz", by="me")
    with pytest.raises(NoSuchFunction, match="no function g of tenant"):
        await registry.roll_back((tenant, "g"), by="me")


async def test_a_withdrawn_function_comes_back_by_a_deploy_or_a_roll_back(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """It is put away, not forgotten."""
    function = version(tmp_path, tenant, 1)
    for bring_back in (registry.deploy(function, by="me"), registry.roll_back((tenant, "f"), by="me"), registry.deploy(function, by="me")):
        await bring_back
        assert await served(registry, tenant) == {"f": function.version}
        await registry.withdraw((tenant, "f"), by="me")
        assert await served(registry, tenant) == {}


async def test_old_bundles_go_and_those_that_can_be_gone_back_to_stay(bus: Bus, registry: Registry, tmp_path: Path, tenant: str) -> None:
    """A function that is deployed every hour must not fill the store."""
    bundles = ObjectStore(bus, "FAAS_BUNDLES")
    functions = [version(tmp_path, tenant, n) for n in range(HISTORY_LIMIT + 2)]
    for function in functions:
        await registry.deploy(function, by="me")
    (known,) = [r for r in await registry.registrations() if r.tenant == tenant]

    assert [revision.version for revision in known.history] == [function.version for function in functions[2:]]
    assert all([await bundles.has(revision.bundle) for revision in known.history])
    with pytest.raises(DeployRefused):
        await registry.roll_back((tenant, "f"), functions[0].version, by="me")


async def test_a_forgotten_function_leaves_nothing(registry: Registry, tmp_path: Path, tenant: str) -> None:
    """Nor its bundles, unless another function has the same."""
    await registry.deploy(version(tmp_path, tenant, 1), by="me")
    gone = await registry.forget((tenant, "f"))

    assert gone is not None
    assert await registry.forget((tenant, "f")) is None
    with pytest.raises(SpecInvalid, match="its bundle is lost"):
        await registry.bundle(gone.current)


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b'{"tenant": "TENANT", "name": "g", "version": "1", "history": []}',
        b'{"tenant": "TENANT", "name": "f", "version": "1", "history": [{"version": "1", "bundle": "b", "size_bytes": 1, "runtime": "r", "by": "m", "at": ""}]}',
    ],
    ids=["no registration", "no version", "of another function"],
)
async def test_a_key_that_somebody_wrote_by_hand_is_passed_over(
    bus: Bus, registry: Registry, tmp_path: Path, tenant: str, text: bytes
) -> None:
    """One bad key must not end every node of a bus."""
    await registry.deploy(version(tmp_path, tenant, 1), by="me")
    await KeyValue(bus, "FAAS_REGISTRY").put(f"{tenant}.g", text.replace(b"TENANT", tenant.encode()))
    changes = [change async for change in registry.changes(0) if change.key == (tenant, "g")]

    assert list(await served(registry, tenant)) == ["f"]
    assert [(change.registration, change.readable) for change in changes] == [(None, False)]


async def test_a_bundle_that_makes_another_version_is_refused(tmp_path: Path, tenant: str) -> None:
    """What runs must be what the registry names."""
    one, two = version(tmp_path, tenant, 1), version(tmp_path, tenant, 2)

    with pytest.raises(SpecInvalid, match=f"makes the version {two.version} and not {one.version}"):
        unpack(pack(two), one.version, PROFILES, mounts=())
    with pytest.raises(SpecInvalid, match="cannot be read"):
        unpack(b"nonsense", one.version, PROFILES, mounts=())


async def test_the_limits_of_the_node_hold_for_what_comes_from_elsewhere(tmp_path: Path, tenant: str) -> None:
    """Another node may have a larger profile; the error names file, line and key as at home."""
    function = version(tmp_path, tenant, 1, spec='[limits]\nmemory = "512MiB"\n')
    small = {"standard": msgspec.structs.replace(PROFILES["standard"], limits=ProfileLimits(memory_bytes=Size(2**28)))}

    with pytest.raises(SpecInvalid, match=r"f/function.toml: line 3: limits.memory: is above"):
        unpack(pack(function), function.version, small, mounts=())
    with pytest.raises(SpecInvalid, match="no profile 'standard'"):
        unpack(pack(function), function.version, {}, mounts=())


@pytest.mark.parametrize("name", ["*", ">", "f.*", "", "F", "\udcff"])
async def test_what_is_no_name_is_nobodys_registration(registry: Registry, tmp_path: Path, tenant: str, name: str) -> None:
    """A wildcard finds whatever was deployed last, and would be written down as a function of its own."""
    function = version(tmp_path, tenant, 1)
    await registry.deploy(function, by="me")
    await registry.deploy(version(tmp_path, tenant, 2), by="me")
    before, standing = await served(registry, tenant), await registry.standing()

    with pytest.raises(NoSuchFunction):
        await registry.withdraw((tenant, name), by="me")
    with pytest.raises(NoSuchFunction):
        await registry.roll_back((tenant, name), by="me")
    assert await registry.forget((tenant, name)) is None
    assert (await served(registry, tenant), await registry.standing()) == (before, standing)
