"""The engine: resolves a request into cells, attacks the samples that are not on disk yet, and computes scores."""
