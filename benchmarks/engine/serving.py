"""One case, served by vLLM: its command in the engine's environment, behind the guard of server.py."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine import environment
from benchmarks.engine.case import Case, command
from benchmarks.engine.server import Server, ServerFailed, free_port
from specauf_cli.errors import InputError
from specauf_cli.store.files import digest

MENDED = re.compile(r"specauf-vllm-cpu: (.+)")
"""The line that the plugin writes to the log of each of vLLM's processes."""


def serve(case: Case, run: Path, *, python: Path, work: Path, timeout: float, options: Sequence[str] = ()) -> Server:
    """Starts the server of ``case`` and waits until it is ready; ``work`` gets its log and changed exports.

    Its name contains a hash of all that the case depends on: answers that a changed plugin or case gave are never taken
    for this one's. ``options`` are added to its command. Errors: InputError when it does not start, or with other
    workarounds than the case says.
    """
    name = f"{case.name}-{digest([asdict(case), environment.fingerprint(case.runner), *options], 8)}"
    port = free_port()
    words, chosen = command(case, run, name=name, port=port, drafters=work / "drafters")
    if case.runner == "V2":
        chosen |= environment.for_v2(environment.ensure_interpreter(work / "triton", python))
    log = work / "logs" / f"{case.name}.log"
    try:
        server = Server(
            [str(python.with_name("vllm")), *words, *options],
            url=f"http://127.0.0.1:{port}",
            log=log,
            environment=environment.variables(chosen, case.without),
            timeout=timeout,
        )
    except ServerFailed as error:
        raise InputError(f"{case.name}: {error}") from error
    applied = set(MENDED.findall(log.read_text("utf-8", errors="replace")))
    if applied != {", ".join(case.workarounds) or "no workaround"}:
        server.stop()
        raise InputError(
            f"{case.name}: the server runs with {' and with '.join(sorted(applied)) or 'no plugin'} instead of "
            f"{', '.join(case.workarounds) or 'no workaround'}; see {log}"
        )
    return server
