"""A benchmark of the adversarial robustness of zero-shot vision-language models (CLIP and its defenses)."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_vlm.api import (
        attack,
        benchmark,
        check_model,
        compare,
        evaluate,
        load_attack,
        load_dataset,
        load_leaderboard,
        load_model,
        zero_shot,
    )

try:
    __version__ = version("robustbench_vlm")
# A source tree that is not installed has no package metadata, so its version is unknown.
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "attack",
    "benchmark",
    "check_model",
    "compare",
    "evaluate",
    "load_attack",
    "load_dataset",
    "load_leaderboard",
    "load_model",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    """Import a function of `api` on its first use, because importing torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustbench_vlm import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """Return the names of this module, including the functions that are not imported yet."""
    return sorted({*globals(), *__all__})
