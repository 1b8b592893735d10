"""The reader under its former name, while rooms move."""

from opo.config.read import read as build

__all__ = ["build"]
