"""Earlier names of `engine.cell_records`, for modules that are not renamed yet."""

from robustbench_vlm.engine.cell_records import CellRecords as Evidence
from robustbench_vlm.engine.cell_records import (
    Condition,
    Unreachable,
    Unsound,
    checked,
    data_digest,
    manifests,
    read_run,
    read_score,
)

__all__ = [
    "Condition",
    "Evidence",
    "Unreachable",
    "Unsound",
    "checked",
    "data_digest",
    "manifests",
    "read_run",
    "read_score",
]
