"""Whether a running server does what the replay says: referee."""

import json
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Benchmarks, Overrides, RunName
from specauf_cli.cli.evaluate import CONCURRENCY, RETRIES, TIMEOUT
from specauf_cli.config.overrides import overrides_of
from specauf_cli.errors import InputError

app = typer.Typer()

EXIT_CODES = {"equal": 0, "differs": 3, "rounding": 4}
"""Of the command, by verdict; 2 is bad input, or a server that cannot be judged."""


@app.command(context_settings=OVERRIDES)
def referee(
    base_url: Annotated[str, typer.Option(help="The server, e.g. http://127.0.0.1:8000")],
    overrides: Overrides = None,
    run: RunName = None,
    backend: Annotated[str, typer.Option(help="vllm or sglang.")] = "vllm",
    benchmarks: Benchmarks = "all",
    no_drafter: Annotated[
        bool, typer.Option("--no-drafter", help="The server has no drafter: is the target itself the same?")
    ] = False,
    lookup: Annotated[
        str | None,
        typer.Option(
            help="It drafts by vLLM's ngram: prompt_lookup_max, _min and num_speculative_tokens, as in 5,2,15."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = CONCURRENCY,
    timeout: Annotated[float, typer.Option(help="Seconds for a whole answer.")] = TIMEOUT,
    retries: Annotated[int, typer.Option(help="Tries after the first.")] = RETRIES,
    served_model: Annotated[str | None, typer.Option(help="The target's name on the server.")] = None,
    served_drafter: Annotated[str | None, typer.Option(help="The drafter's name on the server.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of the summary.")] = False,
) -> None:
    """Hold a running server to the exact replay, request by request; exit code 0: equal, 3: differs, 4: rounding."""
    words = overrides_of(overrides)
    counts = None if lookup is None else _three(lookup)
    from specauf_cli.engines.options import ServerOptions
    from specauf_cli.engines.referee import judge
    from specauf_cli.evaluation.lookup import LookupRule
    from specauf_cli.reporting.referee import summary
    from specauf_cli.store.referee import REFEREE

    outcome = judge(
        ServerOptions(backend, base_url, concurrency, timeout, retries, served_model, served_drafter),
        [run] if run is not None else [],
        benchmarks=benchmarks,
        overrides=words,
        no_drafter=no_drafter,
        lookup=None if counts is None else LookupRule(*counts),
    )
    print(json.dumps(REFEREE.plain(outcome.record)) if as_json else "\n".join(summary(outcome.record)))
    if not as_json:
        print(f"  record: {outcome.record_path}\n  page: {outcome.page}")
    raise typer.Exit(EXIT_CODES[outcome.record.verdict])


def _three(text: str) -> tuple[int, int, int]:
    """Three whole numbers. Errors: InputError."""
    try:
        longest, shortest, tokens = (int(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(f"--lookup {text!r}: give three whole numbers, MAX,MIN,TOKENS, as in 5,2,15") from error
    return longest, shortest, tokens
