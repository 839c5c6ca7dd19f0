"""RobustBench for zero-shot vision-language models: clean and robust accuracy whose numbers hold."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_vlm.api import compare, evaluate, load_attack, load_dataset, load_leaderboard, load_model

try:
    __version__ = version("robustbench_vlm")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "compare",
    "evaluate",
    "load_attack",
    "load_dataset",
    "load_leaderboard",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import a function of `api` when it is first asked for: torch takes seconds, and `vlmbench --help` needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustbench_vlm import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """Return what there is, the functions that are not imported yet included."""
    return sorted({*globals(), *__all__})
