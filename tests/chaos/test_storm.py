"""Faults at random for a while, from a seed; `bench/chaos.py` is the same for longer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from storm import NODES, WINDOWS, Storm
from world import World


@pytest.mark.timeout(170)
async def test_nothing_is_lost_repeated_or_stuck_in_a_storm(tmp_path: Path) -> None:
    """Workers, nodes and the server die at random, and at every step of an end; each event has one outcome, and the ledger agrees."""
    async with World(tmp_path, seed=11) as world:
        for name in NODES:
            await world.node(name)
        storm = Storm(world)
        publishing = asyncio.ensure_future(world.publish(150))
        await storm.rage(publishing, windows_each=1)
        await world.settle(60)
        verdict = await world.verdict()

    assert verdict.accepted >= 150
    assert verdict.broken == []
    assert min(storm.counts[window] for window in WINDOWS) >= 1
