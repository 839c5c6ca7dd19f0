"""The engine: plans a grid of runs into shards, runs what is not on disk yet, and merges the records into scores."""
