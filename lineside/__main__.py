"""`python -m lineside`: the same as the `lineside` command."""

from lineside.cli import main

main()
