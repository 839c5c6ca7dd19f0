"""The terminal: options, tables, progress and messages of the command line."""
