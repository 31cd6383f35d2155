"""Commands around a training: what is checked and estimated before it, where its drafter goes after it."""

import typer

app = typer.Typer()
