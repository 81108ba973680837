"""Lets `python -m reftune` and `accelerate launch -m reftune` do what `reftune` does."""

from reftune.cli import main

main()
