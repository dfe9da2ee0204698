"""Waits at exit for threads that used MLX and are still ending.

MLX keeps random state and compiled functions per thread. Their destructors run after `Thread.join` returned,
and they take the GIL. If Python finalizes at that moment, the process ends with SIGABRT.
"""

import atexit
import sys
import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
_LIMIT_S = 2.0
_GRACE_S = 0.05  # where the system does not list threads

_used: set[int] = set()  # native ids


def note() -> None:
    """Call in every thread that uses MLX."""
    _used.add(threading.get_native_id())


@atexit.register
def _wait() -> None:
    ending = _used - {thread.native_id for thread in threading.enumerate()}
    if sys.platform != "linux":
        time.sleep(_GRACE_S if ending else 0)
        return
    until = time.monotonic() + _LIMIT_S
    while any((_TASKS / str(thread)).exists() for thread in ending) and time.monotonic() < until:
        time.sleep(0.001)
