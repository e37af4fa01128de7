"""Public names for authors of functions and for callers.

Imports nothing when it is imported itself: a sandbox has nothing of this package but the worker's own modules, and the command line
waits for every import before its first line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faas.worker.context import Context, Event, Reject, Result, Retry

__all__ = ["Context", "Event", "Reject", "Result", "Retry", "connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from faas.client import connect  # a sandbox has no such module, and no use for it

        return connect
    if name not in __all__:
        raise AttributeError(f"module 'faas' has no attribute {name!r}")
    from faas.worker import context

    value = globals()[name] = getattr(context, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
