"""Reading TOML strictly, from several threads at once."""

from __future__ import annotations

import subprocess
import sys

MEET = """
import sys, threading
from faas.model import FunctionSpec
from faas.strict import convert
barrier = threading.Barrier(16)
def read():
    barrier.wait()
    convert({"trigger": [{"subject": "a.b"}], "limits": {"timeout": "1s"}}, FunctionSpec)
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=read) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
TRIES = 8


def test_threads_that_meet_a_type_for_the_first_time_together_all_read_it() -> None:
    """A node without a folder reads sixteen bundles at once, the doctor its functions three times: it took the process with it."""
    processes = [subprocess.Popen([sys.executable, "-c", MEET]) for _ in range(TRIES)]

    assert [process.wait(timeout=60) for process in processes] == [0] * TRIES
