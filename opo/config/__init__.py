"""The config: schema of every key, ranges, rules between keys, and how configs are read."""
