"""`python -m opo` is `opo`."""

from opo.cli import main

main()
