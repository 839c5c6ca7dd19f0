"""Analyses of models: self-tests, diagnostics, transfer attacks, single samples and contract checks."""
