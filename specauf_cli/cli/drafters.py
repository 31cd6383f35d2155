"""Drafters in public formats: export, import."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides, RunName
from specauf_cli.config.overrides import overrides_of, runs_folder_only, runs_words, setting
from specauf_cli.errors import InputError, nearest

app = typer.Typer()


@app.command(context_settings=OVERRIDES)
def export(
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    overrides: Overrides = None,
    run: RunName = None,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf (SGLang, SpecForge and other public loaders) or vllm (speculators; Medusa heads as vLLM reads "
            "them).",
        ),
    ] = "hf",
    dtype: Annotated[
        str, typer.Option(help="fp32 (bit for bit what was trained) or bf16 (as public drafters are).")
    ] = "fp32",
    verifier: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the target that --format vllm names. Default: the run's own."),
    ] = None,
) -> None:
    """Write a finished drafter with its model card for public loaders: config.json, model.safetensors, README.md."""
    for option, value, valid in (("--format", layout, ("hf", "vllm")), ("--dtype", dtype, ("fp32", "bf16"))):
        if value not in valid:
            raise InputError(f"{option} {value!r} is none of {', '.join(valid)}.{nearest(value, valid)}")
    if verifier is not None and layout != "vllm":
        raise InputError(f"--verifier {verifier}: only --format vllm names its target; leave it out")
    from specauf_cli.interchange.export import export_drafter
    from specauf_cli.interchange.targets import FROM_THE_USER
    from specauf_cli.store.layout import find

    words = overrides_of(overrides)
    given = setting(words, FROM_THE_USER)
    if given and layout != "vllm":
        raise InputError(f"{given[0]}: only --format vllm needs the target; leave it out")
    local = Path(runs_folder_only([w for w in words if w not in given]))
    (folder,) = find(local, [run] if run is not None else [], every=False)
    print(export_drafter(folder, out.expanduser(), layout=layout, dtype=dtype, verifier=verifier, given=given))


@app.command("import", context_settings=OVERRIDES)
def import_(
    source: Annotated[str, typer.Argument(metavar="PATH_OR_HUB_ID", help="A folder with config.json, or ORG/NAME.")],
    overrides: Overrides = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub's repository.")] = None,
) -> None:
    """Import a public checkpoint as a finished run: measure it with eval, fine-tune it with init=RUN."""
    if "=" in source and not Path(source).exists():
        raise InputError(f"{source!r} is no checkpoint; specauf import PATH_OR_HUB_ID [KEY=VALUE]...")
    words = overrides_of(overrides)
    from specauf_cli.interchange.imports import adopt, fine_tune_command

    folder = adopt(source, words, revision=revision)
    print(f"measure it: {shlex.join(['specauf', 'eval', '--run', folder.name, *runs_words(words)])}", file=sys.stderr)
    print(f"fine-tune it: {fine_tune_command(folder)}", file=sys.stderr)
    print(folder)
