"""Progress: how long work tells how far it is."""

from collections.abc import Callable

Tell = Callable[[int, int, float, str], None]
"""Takes how much is done, of how much, the seconds left (0 where nobody knows), and what is under way."""
