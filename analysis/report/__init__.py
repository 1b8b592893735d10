"""The page, its W&B twin and the tables on the terminal."""
