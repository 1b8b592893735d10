"""One file a command: `load_config` validates the config, `main` runs the command."""
