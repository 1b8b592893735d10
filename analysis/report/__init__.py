"""The HTML page and its colours (`templates/`), the W&B report, and the tables on the terminal."""
