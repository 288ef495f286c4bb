"""`python -m secateur`."""

from .commands.cli import main

main()
