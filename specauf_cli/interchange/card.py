"""The model card of an exported drafter: what was measured and how it was trained, with the hub's front matter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specauf_cli.evaluation.statistics import interval, sample
from specauf_cli.interchange import formats
from specauf_cli.reporting.escape import cell, code
from specauf_cli.reporting.tables import measured_prompts
from specauf_cli.store.records import RunRecord

LOADERS = {
    "DFlashDraftModel": "public DFlash loaders (SGLang, SpecForge, vLLM)",
    "DominoDraftModel": "public Domino loaders (SGLang, SpecForge)",
    "Qwen3DSparkModel": "public DSpark loaders (DeepSpec, vLLM)",
    formats.MEDUSA: "vLLM",
}
"""Who reads a drafter in the layout of its kind, by its architecture; the speculators layout is another one."""


def card(
    about: dict[str, Any], config: dict[str, Any], records: Sequence[RunRecord], *, layout: str, dtype: str
) -> str:
    """The model card of a run, from its ``run.json``, the ``config.json`` of its drafter and what was measured."""
    chosen = about["config"]
    architecture = config["architectures"][0]
    medusa = architecture == formats.MEDUSA
    parts = f"heads {config['block_size'] - 1}" if medusa else f"draft layers {config['num_hidden_layers']}"
    sizes = f"{parts}, block size {config['block_size']}, {dtype}"
    speculators = layout == "vllm" and not medusa
    readers = "vLLM and speculators" if speculators else LOADERS.get(architecture, "public loaders")
    shared = (
        "Its `lm_head.weight` is a copy of the target's"
        if medusa
        else "It has neither embedding nor head of its own: both are the target's"
    )
    lines = [
        *_front_matter(chosen),
        "",
        f"# {cell(chosen['backbone']['title'])} drafter for {cell(chosen['target']['title'])}",
        "",
        f"A block drafter for speculative decoding, {_origin(about)}; {sizes}. For {readers}. {shared}.",
        "",
        "## Measured",
        "",
        *_measured(records, rounded=dtype != "fp32"),
        "## How it was made",
        "",
        *_making(about, config),
        "",
    ]
    return "\n".join(lines)


def _front_matter(chosen: dict[str, Any]) -> list[str]:
    """Keys that the Hugging Face hub reads; those without a value are left out."""
    data = chosen["data"]
    front = {
        "base_model": _hub_id(chosen["target"]["path"]),
        "datasets": [data["hub_id"]] if data["source"] == "hub" and data.get("hub_id") else None,
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", chosen["backbone"]["name"], "specauf"],
    }
    return ["---", *(f"{k}: {json.dumps(v)}" for k, v in front.items() if v is not None), "---"]


def _hub_id(path: str | None) -> str | None:
    """``path`` where it is the hub's name of a target, None for a folder or one trained here."""
    return path if path and formats.HUB_ID.fullmatch(path) and not Path(path).is_dir() else None


def _origin(about: dict[str, Any]) -> str:
    imported = about.get("imported")
    if imported:
        return f"adopted from {cell(imported['source'])}"
    return f"trained by SpecAUF with {cell(about['config']['objective']['title'])}"


def _making(about: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Target, data, command and code, a line each."""
    special, own, target = config["dflash_config"], config["specauf"], about["config"]["target"]
    place = _hub_id(target["path"]) or ("a local folder" if target["path"] else "trained by SpecAUF on the same data")
    examples = f", {cell(about['data']['examples'])} examples" if "examples" in about["data"] else ""
    changes = " with uncommitted changes" if about["code"]["dirty"] else ""
    reads = (
        "- reads the target's last hidden state, after the final norm"
        if config["architectures"] == [formats.MEDUSA]
        else f"- tapped layers: {', '.join(map(cell, special['target_layer_ids']))} (decoder layers counted from 0, "
        f"the feature is the layer's output); mask token id {cell(special['mask_token_id'])}"
    )
    return [
        f"- target: {cell(target['title'])}, {cell(place)}, weights {cell(own.get('target_fingerprint'))}",
        reads,
        f"- data: {cell(about['data']['name'])}{examples}",
        f"- command: {code(about['command'])}",
        f"- run: {cell(about['run'])}, seed {cell(about['config']['seed'])}",
        f"- weights before export: sha256 {cell(own.get('weights'))}",
        f"- code: specauf {cell(about['code'].get('version'))}, commit {cell(about['code']['commit'])}{changes}",
    ]


def _measured(records: Sequence[RunRecord], *, rounded: bool) -> list[str]:
    """tau per benchmark and temperature of every set of evaluation settings; or that there are none.

    ``rounded``: what is exported has fewer bits than what was measured.
    """
    if not records:
        return ["Not measured.", ""]
    lines = [
        "tau: completion tokens / verification rounds of a request, then the mean over requests (what serving engines "
        "report); ± half of the 95 % interval over prompts."
        + (" Measured before the weights were rounded." if rounded else ""),
        "",
    ]
    for record in records:
        settings = record.config["evaluation"]
        lines += [
            f"Precision {cell(settings['precision'])}, at most {cell(settings['max_new_tokens'])} new tokens, greedy "
            f"drafts of {cell(record.config['backbone']['proposals'])}, seed {cell(settings['seed'])}, "
            f"{cell(record.written)}:",
            "",
            "| benchmark | T | prompts | tau |",
            "|---|--:|--:|--:|",
        ]
        for b in record.benchmarks:
            tau = interval(sample({record.seed: b.traces}, "engine"), b.benchmark)
            lines.append(
                f"| {cell(b.title)} | {b.temperature:g} | {measured_prompts(b)} | {tau.value:.3f} ± "
                f"{tau.half_width:.3f} |"
            )
        lines.append("")
    return lines
