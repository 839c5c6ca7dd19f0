"""The command line `vlmbench`: options, tables, progress and messages."""
