"""Comparison of models on the same samples: alignment, paired statistics, tables, exports and plots."""
