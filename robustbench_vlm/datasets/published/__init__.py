"""Published datasets in the form in which their authors release them."""

from robustbench_vlm.datasets.published.base import MissingData, PublishedDataset, StoredImages
from robustbench_vlm.datasets.published.class_lists import class_names
from robustbench_vlm.datasets.published.table import PUBLISHED

__all__ = ["PUBLISHED", "MissingData", "PublishedDataset", "StoredImages", "class_names"]
