"""Run engine: resolve a request into cells, attack the samples without records on disk, and compute scores."""
