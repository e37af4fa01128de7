"""Public names for authors of functions and for callers.

Imports nothing when it is imported itself: a sandbox has nothing of this package but the worker's own modules, and the command line
waits for every import before its first line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faas.client import Client, connect
    from faas.envelope import Ticket
    from faas.errors import BusUnavailable, FaasError, InvocationFailed, NoSuchFunction
    from faas.worker.context import Context, Event, Reject, Result, Retry
    from faas.worker.secrets import Secrets

__all__ = [
    "BusUnavailable",
    "Client",
    "Context",
    "Event",
    "FaasError",
    "InvocationFailed",
    "NoSuchFunction",
    "Reject",
    "Result",
    "Retry",
    "Secrets",
    "Ticket",
    "connect",
]
_OF_CALLERS = {
    "BusUnavailable": "faas.errors",
    "Client": "faas.client",
    "FaasError": "faas.errors",
    "InvocationFailed": "faas.errors",
    "NoSuchFunction": "faas.errors",
    "Ticket": "faas.envelope",
    "connect": "faas.client",
}
"""A sandbox has none of these modules, and no use for them."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'faas' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_OF_CALLERS.get(name, "faas.worker.context")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
