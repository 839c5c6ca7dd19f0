"""Basic parts: errors, files, downloads, random numbers, records, fingerprints, registries and threat models."""
