"""Compare models on the same samples: alignment of records, paired statistics, tables, exports and plots."""
