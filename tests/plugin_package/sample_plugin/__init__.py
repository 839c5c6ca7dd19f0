"""A package that adds one value of every kind to robustbench_vlm by entry points alone."""
