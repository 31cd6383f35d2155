"""What a running server counted, as plain text for the terminal."""

from collections.abc import Mapping
from typing import Any

from specauf_cli.engines.counts import by_prompt, histogram, tau_terms
from specauf_cli.evaluation.statistics import Sample, average, from_terms, interval
from specauf_cli.reporting import escape
from specauf_cli.reporting.summary import of_rounds, plus_minus
from specauf_cli.store.records import skips


def of_server(record: Mapping[str, Any]) -> list[str]:
    """tau as a server counted it, per benchmark and temperature; intervals over prompts where requests have counts of
    their own."""
    served, per_prompt = record["server"], all(by_prompt(b) for b in record["benchmarks"])
    version = f"{record['backend']} {served['version'] or ''}".rstrip()
    text = [f"\n{record['id']}  ({served['name']}, drafter {served['drafter'] or 'unnamed'}, {version})"]
    text.append(f"  tau ({record['definition_text']})")
    for temperature in sorted({b["temperature"] for b in record["benchmarks"]}):
        samples: dict[str, Sample] = {}
        for b in (b for b in record["benchmarks"] if b["temperature"] == temperature):
            name, terms = b["benchmark"], tau_terms(record["definition"], b)
            label = f"  {b['title']:<28} T={temperature:g}  "
            if not terms:
                text.append(f"{label}no request had a round ({len(b['requests'])} requests)")
                continue
            samples[name] = from_terms({0: terms})
            asked = f"{len({r[0] for r in b['requests']})} prompts, {len(b['requests'])} requests"
            counts = f"({', '.join(filter(None, [asked, skips(b['skipped'])]))})"
            tau = plus_minus(interval(samples[name], name)) if per_prompt else f"tau {samples[name].tau:6.3f}"
            rounds = histogram(b)
            share = f"  {of_rounds(rounds)}" if rounds else ""
            text.append(f"{label}{tau}  {counts}{share}")
        if samples:
            average_tau = sum(s.tau for s in samples.values()) / len(samples)
            mean = plus_minus(average(samples)) if per_prompt else f"tau {average_tau:6.3f}"
            text.append(f"  {'average':<28} T={temperature:g}  {mean}")
    if not per_prompt:
        text.append("  no interval: the server's counters add up all prompts (--concurrency 1 counts them one by one)")
    text.append(f"  tokenizer of the server: {served['tokenizer']}")
    return escape.lines(text)
