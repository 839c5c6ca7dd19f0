"""The ground floor: errors, files, downloads, random numbers, records, fingerprints, registries and threats."""
