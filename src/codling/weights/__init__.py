"""Models as files: store, registry, importers, and the embedded models."""
