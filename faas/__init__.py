"""Public names for authors of functions and for callers.

Imports nothing but the worker's own modules, so that a sandbox, where nothing else of this package is, can import it.
"""

from typing import Any

from faas.worker.context import Context, Event, Reject, Result, Retry

__all__ = ["Context", "Event", "Reject", "Result", "Retry", "connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from faas.client import connect  # a sandbox has no such module, and no use for it

        return connect
    raise AttributeError(f"module 'faas' has no attribute {name!r}")
