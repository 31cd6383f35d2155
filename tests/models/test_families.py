"""Every family of targets: logits, features, cache and embedding are the model's own, and decoding is lossless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch

from helpers.families import FAMILIES, of_family
from helpers.sequences import close, sequences
from specauf_cli.config.compose import compose
from specauf_cli.config.schema import TargetConfig
from specauf_cli.data.chat import Chat
from specauf_cli.doctor.examination import CHECKS
from specauf_cli.doctor.subject import OK, Subject
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, decode_all
from specauf_cli.evaluation.replay import replay
from specauf_cli.models import sizes, structure
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target, check_head
from specauf_cli.types import Corpus, Prompt

MakeDrafter = Callable[..., DFlash]
PROMPTS = (Prompt("p0", ("Hi",)), Prompt("p1", ("What is 2 + 3?",)), Prompt("p2", ("Name a color.", "And another?")))
NEW = 24


@pytest.fixture(scope="module", params=list(FAMILIES))
def of(request: pytest.FixtureRequest, chat: Chat, target_config: TargetConfig) -> Target:
    return of_family(request.param, chat, target_config)


@torch.no_grad()
def test_logits_and_features_are_the_models_own(of: Target) -> None:
    tokens = sequences(of.chat.vocab)
    check_head(of)
    logits, features = of.forward(tokens, of.new_cache())
    assert close(logits, of.model(tokens).logits)
    states = structure.decoder(of.model)(input_ids=tokens, output_hidden_states=True).hidden_states
    expected = torch.cat([states[t + 1] for t in of.taps], dim=-1)
    assert close(features, expected)
    assert close(of.features(tokens), expected)
    assert close(of.features_and_last(tokens)[..., -of.hidden_size :], states[-1])


@torch.no_grad()
def test_a_drafter_reads_what_the_first_layer_reads(of: Target) -> None:
    tokens, read = sequences(of.chat.vocab), []
    handle = structure.layers(of.model)[0].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    of.features(tokens)
    handle.remove()
    embedded = of.embed(tokens)
    if hasattr(structure.decoder(of.model), "wpe"):  # GPT-2 adds positions, which draft layers turn by
        embedded = embedded + structure.decoder(of.model).wpe(torch.arange(tokens.shape[1]))
    assert close(embedded, read[0])


def test_a_cropped_cache_gives_what_one_pass_gives(of: Target) -> None:
    tokens = sequences(of.chat.vocab)
    whole, features = of.forward(tokens, of.new_cache())
    cache, logits, pieces = of.new_cache(), [], []
    for part in tokens.split([10, 1, 8, 5], dim=1):
        of.forward(torch.full_like(part, 7), cache)  # a rejected draft
        cache.crop(-part.shape[1])
        found, more = of.forward(part, cache)
        logits.append(found)
        pieces.append(more)
    assert close(torch.cat(logits, dim=1), whole)
    assert close(torch.cat(pieces, dim=1), features)
    assert close(features, of.features(tokens))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_is_lossless_and_replay_equals_it(of: Target, make_drafter: MakeDrafter, temperature: float) -> None:
    drafter = make_drafter(of=of)
    made = trajectories.generate(
        of, PROMPTS, temperature=temperature, seed=0, max_new_tokens=NEW, tail=8, batch_size=4
    ).trajectories
    lived = decode_all(of, Drafted(of, drafter), made, temperature=temperature, seed=0, max_new_tokens=NEW)
    assert [tokens for _, tokens in lived] == [t.tokens[: t.length] for t in made]
    assert [trace for trace, _ in lived] == replay(of, drafter, made, batch_size=4)
    assert len({t for trajectory in made for t in trajectory.tokens}) > 10  # one repeated token would show nothing


@torch.no_grad()
def test_answers_are_those_of_the_model_without_a_cache(of: Target) -> None:
    (made, *_) = trajectories.generate(
        of, PROMPTS[1:2], temperature=0.0, seed=0, max_new_tokens=NEW, tail=0, batch_size=1
    ).trajectories
    whole = torch.tensor([[*made.prompt, *made.tokens]])
    best = of.model(whole).logits[0, len(made.prompt) - 1 : -1].argmax(dim=-1)
    assert tuple(best[: made.length].tolist()) == made.tokens[: made.length]


def test_the_doctor_finds_its_head_and_layers(of: Target, small_corpus: Corpus) -> None:
    subject = Subject(compose(["profile=smoke"]), parts={"data": (small_corpus, small_corpus), "target": of})
    found = {name: CHECKS[name](subject) for name in ("layers", "head", "mask row", "vocabulary", "leak")}
    assert {name: f.found for name, f in found.items() if f.verdict != OK} == {}


def test_sizes_count_the_weights(of: Target) -> None:
    found = sizes.of_model(of.model.config)
    named = of.model.named_parameters()
    matrices = sum(p.numel() for n, p in named if p.dim() > 1 and "bias" not in n and "wpe" not in n)
    assert sizes.target_parameters(found) == pytest.approx(matrices, rel=0.02), asdict(found)
