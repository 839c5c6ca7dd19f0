"""Text output of the command line: tables, progress and documents."""
