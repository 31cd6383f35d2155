"""What there is to train with: objectives."""

import json
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="Show one: its terms, formulas, source, yaml and command.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, for scripts.")] = False,
) -> None:
    """List the objectives, your own among them: what each is, what it needs, its backbones and its source."""
    from specauf_cli.config import catalogue
    from specauf_cli.reporting import escape, gallery

    if name is not None:
        entry = catalogue.entry(name)
        text = [json.dumps(gallery.as_data(entry), indent=1)] if as_json else escape.lines(gallery.details(entry))
    else:
        entries = catalogue.entries()
        listed = [json.dumps(list(map(gallery.as_data, entries)), indent=1)]
        text = listed if as_json else escape.lines(gallery.listing(entries))
    print("\n".join(text))
