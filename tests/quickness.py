"""Measure the processor time of a command: the minimum of several calls, because other processes only increase it."""

import resource
from collections.abc import Callable


def least_seconds(call: Callable[[], object], calls: int = 5) -> float:
    """Return the minimum processor time, in seconds, of the child processes of `call` over several calls."""
    return min(_seconds(call) for _ in range(calls))


def _seconds(call: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
