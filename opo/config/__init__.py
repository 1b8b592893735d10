"""What a run is asked for: the schema of every key, its ranges, and the rules between keys."""
