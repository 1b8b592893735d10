"""What the commands of this package are asked for: a schema and a judge each. Nothing here loads torch."""
