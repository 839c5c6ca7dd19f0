"""Analyses of models beyond a score: self-tests, diagnostics, transfer, single samples and contracts."""
