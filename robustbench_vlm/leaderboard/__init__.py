"""What results are for: evidence from records, comparisons, entries that others can check, and the board they make."""
