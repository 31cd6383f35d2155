"""Every real target of ``conf/target``: its yaml says what is published, and a small model of the same class, given as
the hub would give it, serves as a target."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GptOssForCausalLM

from helpers.commands import specauf
from helpers.hub import FORMATS, publish_like
from helpers.published import ACTIVE, BILLIONS, PUBLISHED
from helpers.sequences import close, sequences
from specauf_cli.config import groups
from specauf_cli.config.compose import compose, read_yaml
from specauf_cli.config.schema import Config, SizesConfig
from specauf_cli.data.chat import Chat, encode
from specauf_cli.doctor import examination
from specauf_cli.doctor.subject import FAIL, OK, Subject
from specauf_cli.errors import InputError
from specauf_cli.models import sizes, structure
from specauf_cli.models import target as targets
from specauf_cli.models.target import Target, check_head, spread
from specauf_cli.planning.plan import estimated, make_plan
from specauf_cli.types import Conversation, Corpus, Message

PADDING = {
    "qwen3": 8,
    "qwen3_moe": 8,
    "llama": 0,
    "gemma3": 8,
    "gemma3_text": -1,
    "mistral": 0,
    "olmo2": 8,
    "gpt_oss": 8,
}
"""Rows of the embedding more than tokens. Of Gemma 3 1B it is one less: the placeholder of pictures has none."""
TALK = (("user", " Hi. "), ("assistant", "Hello there."), ("user", "What is 2 + 3?"), ("assistant", "It is 5."))


@cache
def composed(name: str) -> Config:
    return compose(["profile=single_gpu", f"target={name}"])


def stated(name: str) -> SizesConfig:
    found = composed(name).target.sizes
    assert found is not None
    return found


def test_every_yaml_of_a_real_target_is_checked_here() -> None:
    names = {p.stem for p in (groups.folder("conf") / "target").glob("*.yaml")} - {"hf"}
    real = {n for n in names if read_yaml(groups.file_of("target", n)).get("path") is not None}
    assert real == set(PUBLISHED) == set(BILLIONS)


# --- what the yaml says ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_public_config(name: str) -> None:
    published = {k: v for k, v in PUBLISHED[name].items() if k != "model_type"}
    assert sizes.of_model(AutoConfig.for_model(PUBLISHED[name]["model_type"], **published)) == stated(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plan_counts_the_published_parameters(name: str) -> None:
    config, known = composed(name), stated(name)
    plan = make_plan(config, sizes.of(config.target), estimated(config, None), on_gpu=True)
    assert plan.target / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)
    if known.experts:
        active = sizes.target_parameters(known, active=True)
        if name == "gpt_oss_20b":
            active -= known.vocab_size * known.hidden_size
        assert active / 1e9 == pytest.approx(ACTIVE[name], rel=0.02)  # published with two digits


@pytest.mark.parametrize("name", PUBLISHED)
def test_yamls_follow_the_public_rule_and_run_no_foreign_code(name: str) -> None:
    target = composed(name).target
    assert target.taps == spread(stated(name).layers, 5)
    assert (target.dtype, target.trust_remote_code, target.chat_template) == ("bf16", False, None)
    assert target.name == name
    if isinstance(target.mask_token, int):  # the first row after the tokenizer's entries, as the yaml says them
        text = (groups.folder("conf") / "target" / f"{name}.yaml").read_text()
        assert f"the tokenizer has {target.mask_token:,} entries, the rest is padding" in text
        assert target.mask_token < stated(name).vocab_size
    else:
        assert target.mask_token in FORMATS[PUBLISHED[name]["model_type"]].added


def test_the_command_says_parameters_and_taps(tmp_path: Path) -> None:
    said = specauf(tmp_path, "plan", "profile=single_gpu", "target=gpt_oss_20b", "--gpu", "h200").stdout
    assert "target 20.9 G frozen in bf16, layers 1, 6, 11, 16, 21 tapped" in said


# --- a small model of the same class ---


@dataclass(frozen=True)
class Small:
    name: str
    config: Config
    folder: Path
    target: Target


@pytest.fixture(scope="module", params=list(PUBLISHED))
def small(request: pytest.FixtureRequest, chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The target that the yaml describes, with path and sizes of a small model. A mask token that the yaml gives as an
    id is the first padding row."""
    name, published = request.param, PUBLISHED[request.param]
    folder = publish_like(
        tmp_path_factory.mktemp("hub") / name, chat, published, padding=PADDING[published["model_type"]]
    )
    config = composed(name)
    token = config.target.mask_token if isinstance(config.target.mask_token, str) else None
    known = sizes.of(replace(config.target, path=str(folder), revision=None, sizes=None))
    target = replace(config.target, path=str(folder), sizes=known, mask_token=token)
    return Small(name, replace(config, target=target), folder, targets.load(target, device="cpu"))


def test_the_folder_is_as_the_hub_gives_it(small: Small) -> None:
    index = json.loads((small.folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert any(name.endswith("lm_head.weight") for name in index) != stated(small.name).tied
    model = small.target.model
    assert [type(model).__name__] == PUBLISHED[small.name]["architectures"]
    assert model.dtype == torch.bfloat16


@torch.no_grad()
def test_it_loads_and_gives_features(small: Small) -> None:
    found, known = small.target, stated(small.name)
    check_head(found)
    assert found.taps == composed(small.name).target.taps
    assert (found.depth, sizes.of_model(found.model.config).experts > 0) == (known.layers, known.experts > 0)
    tokens = sequences(found.chat.vocab)
    logits, features = found.forward(tokens, found.new_cache())
    assert close(logits.float(), found.model(tokens).logits[..., : found.chat.vocab].float())
    states = structure.decoder(found.model)(input_ids=tokens, output_hidden_states=True).hidden_states
    assert close(features.float(), torch.cat([states[t + 1] for t in found.taps], dim=-1).float())
    assert close(found.features(tokens).float(), features.float())


def test_rows_without_a_token_and_tokens_without_a_row_are_left_out(small: Small) -> None:
    found, padding = small.target, PADDING[PUBLISHED[small.name]["model_type"]]
    rows = found.model.get_output_embeddings().weight.shape[0]
    assert rows == len(found.chat.tokenizer) + padding
    assert found.chat.vocab == min(rows, len(found.chat.tokenizer))
    wanted = composed(small.name).target.mask_token
    if isinstance(wanted, str):
        assert found.chat.tokenizer.convert_ids_to_tokens(found.chat.mask_id) == wanted
    else:
        assert found.chat.mask_id == len(found.chat.tokenizer)


def test_every_published_end_token_ends_an_answer(small: Small) -> None:
    published, chat = PUBLISHED[small.name], small.target.chat
    ends = FORMATS[published["model_type"]].ends
    if isinstance(published["eos_token_id"], list):
        assert len(ends) == len(published["eos_token_id"]) > 1
    assert chat.stop_ids == {chat.tokenizer.convert_tokens_to_ids(t) for t in (*ends, chat.tokenizer.eos_token)}


def test_answers_follow_their_evaluation_prompt(small: Small) -> None:
    chat = small.target.chat
    conversation = Conversation("c", tuple(Message(*t) for t in TALK))
    examples, counts = encode(chat, Corpus("talk", (conversation,)), max_length=512)
    asked = [list(chat.prompt(conversation.messages[:k])) for k in (1, 3)]
    for prompt in asked:
        followed = [e for e in examples if list(e.tokens[: len(prompt)]) == prompt and e.supervised[len(prompt)]]
        assert followed, (chat.text(prompt), counts)
    assert all(e.tokens[max(i for i, s in enumerate(e.supervised) if s)] in chat.stop_ids for e in examples)


def test_the_doctor_finds_nothing_wrong_with_it(small: Small, chat: Chat) -> None:
    conversations = tuple(Conversation(f"c{i}", tuple(Message(*t) for t in TALK)) for i in range(4))
    corpus = Corpus("talk", conversations)
    subject = Subject(small.config, parts={"data": (corpus, corpus), "target": small.target})
    wanted = ("layers", "head", "mask row", "vocabulary", "rendering", "stop tokens")
    found = {n: examination.CHECKS[n](subject) for n in wanted}
    assert {n: f.found for n, f in found.items() if f.verdict != OK} == {}


@pytest.mark.parametrize("name", ["gemma3_4b", "gpt_oss_20b"])
def test_the_dry_run_and_the_plan_read_a_local_folder(name: str, chat: Chat, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    publish_like(tmp_path / "model", chat, published, padding=PADDING[published["model_type"]])
    words = ["profile=smoke", "target=hf", "target.path=model", "data.limit=40", "data.heldout=6"]
    assert FAIL not in specauf(tmp_path, "doctor", "--dry-run", *words).stdout
    said = specauf(tmp_path, "plan", *words, "--gpu", "h100").stdout
    layers = ", ".join(map(str, spread(stated(name).layers, 5)))
    assert f"frozen in bf16, layers {layers} tapped" in said


def test_sizes_of_another_model_are_refused(chat: Chat, tmp_path: Path) -> None:
    folder = publish_like(tmp_path / "model", chat, PUBLISHED["gemma3_1b"], padding=0)
    with pytest.raises(InputError, match=r"does not have the sizes of target=gemma3_1b: hidden_size is 64, not 1152;"):
        targets.load(replace(composed("gemma3_1b").target, path=str(folder)), device="cpu")


# --- what is peculiar to some ---


def test_a_system_message_is_rendered_or_refused_in_one_line(small: Small) -> None:
    talk = Conversation("c", tuple(Message(*t) for t in (("system", "Be brief."), *TALK[:2])))
    if PUBLISHED[small.name]["model_type"] == "mistral":
        with pytest.raises(
            InputError, match=r"conversation c: the chat template renders the finished turn differently"
        ):
            small.target.chat.answers(talk)
    else:
        ((prompt, answer),) = small.target.chat.answers(talk)
        assert "Be brief." in prompt
        assert "Hello there." in answer


@pytest.mark.parametrize("name", ["gemma3_1b", "mistral_7b"])
def test_turns_that_do_not_alternate_are_refused_in_one_line(name: str, chat: Chat, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    folder = publish_like(tmp_path / "model", chat, published, padding=PADDING[published["model_type"]])
    loaded = Chat.load(replace(composed(name).target, path=str(folder)))
    with pytest.raises(InputError, match=r"the chat template of .* cannot render the turns user, user: .*alternate"):
        loaded.render([Message("user", "Hi"), Message("user", "Hello?")], generation=True)


def test_no_prompt_holds_the_day_of_today(small: Small) -> None:
    prompt = small.target.chat.render([Message("user", "Hi")], generation=True)
    dates = {"llama": "Today: 26 Jul 2024<", "gpt_oss": "Date: 2024-07-26<"}
    assert dates.get(PUBLISHED[small.name]["model_type"], "Hi") in prompt


FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The eight magnitudes of four bits; the highest bit is the sign (OCP Microscaling formats, section 5.3.3)."""


def test_experts_in_mxfp4_are_unpacked_whatever_is_installed(chat: Chat, tmp_path: Path) -> None:
    """Each byte is two values, the lower four bits first; a scale of 2^(s - 127) holds for 32 of them."""
    from safetensors import safe_open

    folder = publish_like(tmp_path / "model", chat, PUBLISHED["gpt_oss_20b"], padding=8)
    target = replace(composed("gpt_oss_20b").target, path=str(folder), sizes=None)
    model = targets.load(target, device="cpu").model
    assert isinstance(model, GptOssForCausalLM)
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for part in ("gate_up_proj", "down_proj"):
        name = f"model.layers.3.mlp.experts.{part}"
        held = {}
        for kind in ("blocks", "scales"):
            with safe_open(folder / places[f"{name}_{kind}"], "pt") as file:
                held[kind] = file.get_tensor(f"{name}_{kind}").int()
        nibbles = torch.stack([held["blocks"] & 15, held["blocks"] >> 4], dim=-1).flatten(-2)
        values = FP4[nibbles & 7] * torch.where(nibbles > 7, -1.0, 1.0) * torch.exp2(held["scales"] - 127.0)[..., None]
        expected = values.flatten(-2).transpose(1, 2)
        unpacked = getattr(model.model.layers[3].mlp.experts, part)
        assert unpacked.dtype == torch.bfloat16
        torch.testing.assert_close(unpacked.float(), expected, rtol=0, atol=0)


def test_attention_that_a_model_does_not_have_is_refused_in_one_line(chat: Chat, tmp_path: Path) -> None:
    folder = publish_like(tmp_path / "model", chat, PUBLISHED["gpt_oss_20b"], padding=8)
    target = replace(composed("gpt_oss_20b").target, path=str(folder), sizes=None)
    with pytest.raises(
        InputError, match=r"cannot be loaded: GptOssForCausalLM does not support an attention"
    ) as refused:
        targets.load(replace(target, attention="sdpa"), device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_its_revision_is_a_commit(name: str) -> None:
    """A branch may move between two runs of a comparison."""
    assert re.fullmatch(r"[0-9a-f]{40}", str(composed(name).target.revision))
