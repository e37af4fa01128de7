"""Python source to its syntax tree, for a process that does other things too: threads, and finalizers that format tracebacks.

CPython 3.11 counts the depth of all trees of a process together, and raises SystemError where two are built at once: by two
threads, or by a traceback that is formatted while a collection of garbage runs in the middle. Here one is built at a time, and nothing is collected.
"""

from __future__ import annotations

import ast
import gc
import threading
import warnings

_ONE_AT_A_TIME = threading.Lock()


def parse(source: str | bytes) -> ast.Module:
    """Raises SyntaxError, ValueError, RecursionError, MemoryError; what Python would only warn of is the author's to hear, not the node's."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collects = gc.isenabled()
        gc.disable()
        try:
            return ast.parse(source)
        finally:
            if collects:
                gc.enable()
