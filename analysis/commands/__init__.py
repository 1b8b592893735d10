"""One file a command: `load_config` judges what is asked for, `main` does it."""
