"""Public names for authors of functions and for callers.

Imports nothing but the worker's own modules, so that a sandbox, where nothing else of this package is, can import it.
"""

from typing import TYPE_CHECKING, Any

from faas.worker.context import Context, Event, Reject, Result, Retry

if TYPE_CHECKING:
    from faas.client import connect

__version__ = "0.1.0"
__all__ = ["Context", "Event", "Reject", "Result", "Retry", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from faas.client import connect

        return connect
    raise AttributeError(f"module 'faas' has no attribute {name!r}")
