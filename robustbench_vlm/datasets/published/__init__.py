"""Readers of published datasets, in the formats in which their authors released them."""

from robustbench_vlm.datasets.published.base import MissingData, PublishedDataset, StoredImages
from robustbench_vlm.datasets.published.class_lists import class_names
from robustbench_vlm.datasets.published.table import PUBLISHED

__all__ = ["PUBLISHED", "MissingData", "PublishedDataset", "StoredImages", "class_names"]
