"""Hydra configs; a package, so that an installed project finds them."""
