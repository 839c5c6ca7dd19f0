"""How long a command keeps a processor: other processes lengthen it, so the least of a few calls is what it needs."""

import resource
from collections.abc import Callable


def least_seconds(call: Callable[[], object], calls: int = 5) -> float:
    """Return the least processor time, in seconds, that the processes which `call` starts and awaits take."""
    return min(_seconds(call) for _ in range(calls))


def _seconds(call: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
