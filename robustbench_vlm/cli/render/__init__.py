"""Rendering: tables, progress and documents of the command line."""
