"""What W&B is told of a result: each kind of result as tables, charts, pictures, numbers, files and what it was measured on."""
