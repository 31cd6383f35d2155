"""What a running server counted, as plain text for the terminal."""

from collections.abc import Mapping
from typing import Any

from specauf_cli.engines import server
from specauf_cli.evaluation.statistics import Sample, average, from_terms, interval
from specauf_cli.evaluation.turns import skips
from specauf_cli.reporting import escape
from specauf_cli.reporting.summary import of_rounds, plus_minus


def of_server(record: Mapping[str, Any]) -> list[str]:
    """tau as a server counted it, per benchmark and temperature; intervals over prompts where requests have counts of
    their own."""
    served, own = record["server"], all(server.by_prompt(b) for b in record["benchmarks"])
    version = f"{record['backend']} {served['version'] or ''}".rstrip()
    text = [f"\n{record['id']}  ({served['name']}, drafter {served['drafter'] or 'unnamed'}, {version})"]
    text.append(f"  tau ({record['definition_text']})")
    for temperature in sorted({b["temperature"] for b in record["benchmarks"]}):
        samples: dict[str, Sample] = {}
        for b in (b for b in record["benchmarks"] if b["temperature"] == temperature):
            name, found = b["benchmark"], server.tau_terms(record["definition"], b)
            label = f"  {b['title']:<28} T={temperature:g}  "
            if not found:
                text.append(f"{label}no request had a round ({len(b['requests'])} requests)")
                continue
            samples[name] = from_terms({0: found})
            asked = f"{len({r[0] for r in b['requests']})} prompts, {len(b['requests'])} requests"
            counts = f"({', '.join(filter(None, [asked, skips(b['skipped'])]))})"
            shown = plus_minus(interval(samples[name], name)) if own else f"tau {samples[name].tau:6.3f}"
            rounds = server.histogram(b)
            share = f"  {of_rounds(rounds)}" if rounds else ""
            text.append(f"{label}{shown}  {counts}{share}")
        if samples:
            mean = (
                plus_minus(average(samples))
                if own
                else f"tau {sum(s.tau for s in samples.values()) / len(samples):6.3f}"
            )
            text.append(f"  {'average':<28} T={temperature:g}  {mean}")
    if not own:
        text.append("  no interval: the server's counters add up all prompts (--concurrency 1 counts them one by one)")
    text.append(f"  tokenizer of the server: {served['tokenizer']}")
    return escape.lines(text)
