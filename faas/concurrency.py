"""Many small waits at once, a bounded number of them: one after another a thousand functions would take seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 16


async def side_by_side(works: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """What these return, in their order, AT_ONCE of them at a time. What one raises is raised once all have ended."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(work: Coroutine[None, None, T]) -> T:
        async with room:
            return await work

    found = []
    for ended in await asyncio.gather(*map(one, works), return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended
        found.append(ended)
    return found
