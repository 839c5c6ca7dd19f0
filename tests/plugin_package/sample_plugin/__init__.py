"""A package that adds one value of every kind to robustbench_vlm with entry points."""
