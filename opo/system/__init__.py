"""The machine: files written whole, the cache, seeds and threads."""
