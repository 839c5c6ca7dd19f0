"""The speed of downloads: limits, a check while bytes arrive, and the message about a slow host."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.text import terminal_text

LOGGER = logging.getLogger("robustbench_vlm")
"""Logger for messages about a download that is still running. If logging is not configured, Python prints these
messages on stderr.
"""


@dataclass(frozen=True)
class Limits:
    """Limits for the rate of a download and for the wait between requests."""

    slow_rate: float = 200_000.0
    """Rate in bytes per second. A download below this rate counts as slow."""
    slow_seconds: float = 60.0
    """Seconds over which the rate is measured. A download that ends within this time does not count as slow."""
    longest_wait: float = 600.0
    """The longest time, in seconds, to wait for a server that limits requests (HTTP status 429 or 503)."""


LIMITS = Limits()
"""The default limits."""


class SlowDownload(UserError):
    """A host sends a file more slowly than `Limits.slow_rate`."""

    def __init__(self, url: str, rate: float, seconds_left: float | None) -> None:
        left = "" if seconds_left is None else f", so the rest takes about {_minutes(seconds_left)}"
        super().__init__(f"{url} is sent at {rate / 1000:.0f} kB/s{left}")
        self.url = url
        """The address of the file."""
        self.rate = rate
        """The measured rate in bytes per second."""
        self.seconds_left = seconds_left
        """Estimated seconds until the end of the download. None if the size of the file is unknown."""


OnSlow = Callable[[SlowDownload], None]
"""Type of `on_slow`: a function that is called if a download is slow."""


def once(on_slow: OnSlow) -> OnSlow:
    """Return a function that calls `on_slow` the first time and does nothing later."""
    reports: list[SlowDownload] = []

    def report(slow: SlowDownload) -> None:
        reports.append(slow)
        if len(reports) == 1:
            on_slow(slow)

    return report


def stop(slow: SlowDownload) -> None:
    """Stop a slow download by raising its SlowDownload exception."""
    raise slow


def warn_slow(slow: SlowDownload) -> None:
    """Tell the user that a download is slow. This is the default of `on_slow`."""
    tell(f"{slow}; press Ctrl-C to stop, and repeat the command later to continue")


def tell(message: str) -> None:
    """Log a message about a download that is still running."""
    LOGGER.warning(terminal_text(message))


class SpeedCheck:
    """Measure the rate at which the bytes of one response arrive."""

    def __init__(self, url: str, limits: Limits, received: int) -> None:
        self._url, self._limits = url, limits
        self._began, self._before = time.monotonic(), received

    def slow(self, received: int, total: int | None) -> SlowDownload | None:
        """Return a SlowDownload if the rate since the last measurement is too low, and None if not.

        `received` and `total` are numbers of bytes.
        """
        now = time.monotonic()
        seconds = now - self._began
        if seconds < self._limits.slow_seconds:
            return None
        rate = (received - self._before) / seconds
        self._began, self._before = now, received
        left = None if total is None else (total - received) / rate
        if rate >= self._limits.slow_rate or (left is not None and left < self._limits.slow_seconds):
            return None
        return SlowDownload(self._url, rate, left)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
