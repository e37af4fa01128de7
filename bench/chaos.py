"""Is anything lost, repeated or stuck while workers, nodes and the nats-server die at random?

Two nodes on one nats-server that syncs every write; five kinds of functions; `kill -9` of workers, nodes and the server, SIGSTOP beyond a
lease, graceful restarts, and crash points armed so that kills fall into each window of an end. Seeded.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "chaos")]

from measure import Goal, report  # noqa: E402
from storm import NODES, WINDOWS, Storm  # noqa: E402
from world import Verdict, World  # noqa: E402


async def storm(events: int, seed: int, windows_each: int) -> tuple[Verdict, Storm, float]:
    """Publish so many events into a storm; what is left when all has settled."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with World(Path(folder), seed=seed) as world:
            for name in NODES:
                await world.node(name)
            raging = Storm(world)
            publishing = asyncio.ensure_future(world.publish(events))
            await raging.rage(publishing, windows_each=windows_each)
            await world.settle(120)
            return await world.verdict(), raging, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--windows", type=int, default=10, help="kills in each window of an end")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    verdict, raging, took_s = asyncio.run(storm(arguments.events, arguments.seed, arguments.windows))
    rows = [
        {
            "accepted": verdict.accepted,
            "lost": len(verdict.lost),
            "duplicated": len(verdict.duplicated),
            "double_billed": len(verdict.contradicting),
            "not_in_ledger": len(verdict.missing_from_ledger),
            "letters_missing": len(verdict.letters_missing),
            "executed_again": verdict.executed_again,
            "longest_stall_s": verdict.longest_stall_s,
            "loop_lag_p99_s": verdict.lag_p99_s,
            "took_s": took_s,
        },
        *({"fault": fault, "times": times} for fault, times in sorted(raging.counts.items())),
    ]
    goals = [
        Goal(name, float(rows[0][name]), 0) for name in ("lost", "duplicated", "double_billed", "not_in_ledger", "letters_missing")
    ] + [Goal(f"kills in the window {window}", raging.counts[window], arguments.windows, at_most=False) for window in WINDOWS]
    report("Chaos: what is left after a storm", rows, goals, settings=arguments)


if __name__ == "__main__":
    main()
