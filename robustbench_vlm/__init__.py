"""RobustBench for zero-shot vision-language models: clean and robust accuracy whose numbers hold."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("robustbench_vlm")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
