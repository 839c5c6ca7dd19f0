"""The published datasets of the zero-shot suite, as their authors store them: one row each."""

from collections.abc import Mapping

from robustbench_vlm.datasets.published.classes import class_names
from robustbench_vlm.datasets.published.extra import EXTRA
from robustbench_vlm.datasets.published.original import MissingData, Original, Pictures
from robustbench_vlm.datasets.published.suite import SUITE

__all__ = ["ORIGINALS", "MissingData", "Original", "Pictures", "class_names"]

ORIGINALS: Mapping[str, Original] = {original.name: original for original in (*SUITE, *EXTRA)}
