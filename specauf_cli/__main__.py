"""``python -m specauf_cli`` is the ``specauf`` command."""

from specauf_cli.cli import main

main()
