"""Basic modules: errors, files, downloads, random numbers, records, fingerprints, registries and threat models."""
