"""Every check of the doctor against a healthy subject, and against one in which exactly that thing is broken."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from commands import specauf
from specauf_cli import compose, doctor
from specauf_cli.checks import drafter as drafter_checks
from specauf_cli.checks import room, subject
from specauf_cli.checks.subject import FAIL, OUT, WARN, Finding, Subject
from specauf_cli.data import offline
from specauf_cli.data.chat import CHATML, MASK, Chat
from specauf_cli.evaluation import replay
from specauf_cli.models import blocks, checkpoint
from specauf_cli.models import target as targets
from specauf_cli.models.dflash import BlockAttention, DFlash
from specauf_cli.models.domino import Domino
from specauf_cli.models.target import Target
from specauf_cli.records import read_json, write_json
from specauf_cli.schema import Conversation, Corpus, Example, Message, Prompt, PromptSet
from specauf_cli.settings import Config

BACKBONES = ("dflash", "domino")
BLOCK = ("backbone.block_size=8", "backbone.proposals=7", "trainer.max_length=512")
THINK = "<think>\\n\\n</think>\\n\\n"
Patch = pytest.MonkeyPatch
Break = Callable[..., Subject]


@pytest.fixture(scope="module")
def data() -> tuple[Corpus, Corpus]:
    return offline.conversations(24, seed=0), offline.heldout(6, seed=0)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[PromptSet, PromptSet]]:
    made = offline.prompts("algebra", 4, seed=0)
    asked = tuple(replace(p, turns=tuple(f"{t}\nAnswer briefly." for t in p.turns)) for p in made)
    return [(PromptSet("algebra", "Algebra", p, 4, "sha", "offline"), PromptSet("algebra", "A", q, 4, "sha", "offline"))
            for p, q in [(made, asked)]]  # fmt: skip


@functools.cache
def configuration(backbone: str) -> Config:
    return compose.compose(["profile=smoke", *BLOCK, f"backbone={backbone}"])


def changed(config: Config, settings: dict[str, Any]) -> Config:
    """``config`` with settings such as ``backbone.attention`` replaced, without composing anew."""
    for key, value in settings.items():
        group, _, name = key.partition(".")
        value = replace(getattr(config, group), **{name: value}) if name else value
        config = replace(config, **{group: value})
    return config


@pytest.fixture
def healthy(
    target: Target, data: tuple[Corpus, Corpus], prompts: list[tuple[PromptSet, PromptSet]], tmp_path: Path
) -> Break:
    """A subject with some settings, and some parts (``target``, ``data``, ``prompts``), replaced."""

    def make(backbone: str = "dflash", /, folder: Path | None = None, settings: Any = None, **parts: Any) -> Subject:
        config = changed(configuration(backbone), {"runs": str(tmp_path), **(settings or {})})
        parts = {"target": copy.copy(target), "data": data, "prompts": prompts, **parts}
        return Subject(config, folder, parts=parts)

    return make


def found(of: Subject) -> dict[str, Finding]:
    return dict(doctor.examine(of))


def wrong(of: Subject) -> dict[str, str]:
    """Lines that are not ok, checks left out not counted: what the doctor says is broken."""
    return {n: doctor.line(n, f) for n, f in found(of).items() if f.verdict in (FAIL, WARN)}


def only(of: Subject, name: str, *words: str) -> str:
    """Asserts that exactly the check ``name`` finds something, in these words, with a fix, in one line."""
    said = wrong(of)
    assert list(said) == [name], said
    assert all(w in said[name] for w in words), said[name]
    assert "\n" not in said[name]
    return said[name]


def weights_of(target: Target) -> Target:
    """The target with weights of its own, to be broken."""
    return Target(copy.deepcopy(target.model), target.chat, target.config, target.fingerprint)


def with_chat(target: Target, change: Callable[[Any], object]) -> Target:
    tokenizer = copy.deepcopy(target.chat.tokenizer)
    change(tokenizer)
    return Target(target.model, Chat(tokenizer, MASK), target.config, target.fingerprint)


def with_template(target: Target, template: str) -> Target:
    return with_chat(target, lambda t: setattr(t, "chat_template", template))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_healthy_subject_passes_every_check(healthy: Break, name: str) -> None:
    said = found(healthy(name))
    assert list(said) == list(doctor.CHECKS)
    assert {n: f.found for n, f in said.items() if f.verdict != "ok"} == {}
    assert "<|im_start|>user\\n" in said["first prompt"].shown[0]
    assert said["first prompt"].shown[1].startswith("algebra, algebra-prompt-000000, ")


# --- what reaches a block, what its slots are asked ---


def shifted_view(by: int) -> Callable[..., Tensor]:
    """BlockAttention.forward whose blocks see ``by`` context positions more (fewer, if negative)."""
    real = BlockAttention.forward

    def forward(self: BlockAttention, hidden: Tensor, context: Any, view: Any) -> Tensor:
        seen = view.visible.sum(dim=-1, keepdim=True) + by
        visible = torch.arange(view.visible.shape[-1]) < seen
        return real(self, hidden, context, view._replace(visible=visible))

    return forward


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("attention", ["dense", "split"])
def test_a_leak_of_one_position(healthy: Break, monkeypatch: Patch, name: str, attention: str) -> None:
    monkeypatch.setattr(BlockAttention, "forward", shifted_view(1))
    only(
        healthy(name, settings={"backbone.attention": attention}),
        "leak",
        "anchor + 0 reaches the block, 1 do",
        "fix",
    )


def test_a_block_that_misses_the_state_before_its_anchor(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(BlockAttention, "forward", shifted_view(-1))
    only(healthy(), "leak", "right before the anchor does not reach")


def test_a_branch_that_reads_the_token_it_is_to_predict(healthy: Break, monkeypatch: Patch) -> None:
    real = Domino.logits

    def logits(self: Domino, target: Target, hidden: Tensor, previous: Tensor) -> dict[str, Tensor]:
        return real(self, target, hidden, previous.roll(-1, dims=1))

    monkeypatch.setattr(Domino, "logits", logits)
    assert "reads the token that slot" in wrong(healthy("domino"))["leak"]


def test_a_target_that_sees_ahead(healthy: Break, target: Target, monkeypatch: Patch) -> None:
    real = Target.features
    monkeypatch.setattr(Target, "features", lambda self, tokens: real(self, tokens) + tokens.sum())
    assert "not causal" in wrong(healthy())["leak"]


@pytest.mark.parametrize("name", BACKBONES)
def test_labels_shifted_by_one(healthy: Break, monkeypatch: Patch, name: str) -> None:
    real = blocks.labels_and_mask
    shifted = lambda tokens, *rest: real(tokens.roll(-1, dims=1), *rest)  # noqa: E731
    monkeypatch.setattr(blocks, "labels_and_mask", shifted)
    only(
        healthy(name),
        "labels",
        "the label of slot 0 is not the token at anchor + 1, it is the token at anchor + 2",
    )


def test_a_mask_that_goes_on_behind_the_turn(healthy: Break, monkeypatch: Patch) -> None:
    real = blocks.labels_and_mask

    def longer(tokens: Tensor, supervised: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return real(tokens, torch.ones_like(supervised), *rest)

    monkeypatch.setattr(blocks, "labels_and_mask", longer)
    only(healthy(), "labels", "is supervised, its token is not")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_replay_that_compares_other_tokens_than_the_labels(healthy: Break, monkeypatch: Patch, name: str) -> None:
    real = replay.accepted_prefix
    monkeypatch.setattr(replay, "accepted_prefix", lambda a, b: real(a, b.roll(1, dims=-1)))
    only(healthy(name), "labels", "proposals accepted")


@pytest.mark.parametrize(("name", "kind"), [("dflash", DFlash), ("domino", Domino)])
def test_drafts_from_another_slot_than_the_trained_one(
    healthy: Break, monkeypatch: Patch, name: str, kind: Any
) -> None:
    real = kind.draft
    monkeypatch.setattr(kind, "draft", lambda self, *rest: real(self, *rest).roll(1, dims=-1))
    only(healthy(name, settings={"backbone.init_std": 0.3}), "labels", "drafts another token than its training logits")


# --- the target ---


def off_by_one(monkeypatch: Patch, view: str) -> None:
    real = getattr(Target, view)

    def shifted(self: Target, *rest: Any, **more: Any) -> Any:
        other = copy.copy(self)
        other.taps = tuple(t + 1 for t in self.taps)
        return real(other, *rest, **more)

    monkeypatch.setattr(Target, view, shifted)


@pytest.mark.parametrize(("view", "word"), [("features", "training"), ("forward", "decoding")])
def test_taps_off_by_one(
    healthy: Break, make_target: Callable[..., Target], monkeypatch: Patch, view: str, word: str
) -> None:
    off_by_one(monkeypatch, view)
    only(
        healthy(target=make_target(taps=(0, 1))), "layers", f"in {word}, the feature of tap 0 is the output of layer 1"
    )


def test_the_last_layer_tapped(healthy: Break, target: Target) -> None:
    broken = copy.copy(target)
    broken.taps = (0, 1, 3)
    assert "the last of 4" in wrong(healthy(target=broken))["layers"]


def test_a_head_that_is_not_tied_although_the_target_says_so(healthy: Break, target: Target) -> None:
    broken = weights_of(target)
    broken._head.weight = nn.Parameter(torch.randn(broken._head.weight.shape), requires_grad=False)
    only(healthy(target=broken), "head", "says tie_word_embeddings")


def test_a_head_that_would_be_trained(healthy: Break, target: Target) -> None:
    broken = weights_of(target)
    broken.model.model.norm.weight.requires_grad_(True)
    only(healthy(target=broken), "head", "model.norm.weight of the target would be trained")


def test_a_head_that_no_file_holds(healthy: Break, target: Target, tmp_path: Path) -> None:
    broken = weights_of(target)
    broken.model.config.tie_word_embeddings = False
    broken._head.weight = nn.Parameter(torch.randn(broken._head.weight.shape), requires_grad=False)
    broken.config = replace(target.config, path=str(tmp_path / "target"))
    broken.model.save_pretrained(tmp_path / "target")
    assert wrong(healthy(target=broken)) == {}
    path = tmp_path / "target" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "lm_head" not in k}, path, metadata={"format": "pt"})
    only(healthy(target=broken), "head", "no file of the target holds lm_head.weight")


def test_a_drafter_with_an_embedding_of_its_own(healthy: Break, monkeypatch: Patch) -> None:
    real = DFlash.__init__

    def init(self: DFlash, config: Any, *rest: Any) -> None:
        real(self, config, *rest)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    monkeypatch.setattr(DFlash, "__init__", init)
    only(healthy(), "head", "embed_tokens.weight of its own")


@pytest.mark.parametrize(("factor", "word"), [(0.0, "norm 0;"), (100.0, "the median row"), (0.01, "the median row")])
def test_a_mask_row_that_is_zero_or_an_outlier(healthy: Break, target: Target, factor: float, word: str) -> None:
    broken = weights_of(target)
    broken._embedding.weight[target.chat.mask_id] *= factor
    said = only(healthy(target=broken), "mask row", "'<|mask|>' (id 3)", word, "fix: another target.mask_token")
    assert said.startswith(WARN if factor else FAIL)


def test_a_tokenizer_longer_than_the_head(healthy: Break, target: Target) -> None:
    broken = with_chat(target, lambda t: t.add_tokens([f"<extra{i}>" for i in range(9)]))
    only(healthy(target=broken), "vocabulary", "the tokenizer has 329 tokens, the target 320 rows")


def test_padded_rows_are_fine_when_they_are_cut_off_and_only_then(healthy: Break, target: Target) -> None:
    model = copy.deepcopy(target.model)
    model.resize_token_embeddings(384)
    padded = Target(model, copy.copy(target.chat), target.config, target.fingerprint)
    said = found(healthy(target=padded))
    assert said["vocabulary"].found == "320 tokens, 384 rows, 64 of them padding that is cut off"
    padded.chat.vocab = 384
    only(healthy(target=padded), "vocabulary", "384 logits for 320 tokens")


# --- the text ---


def test_a_template_whose_generation_prompt_alone_thinks(healthy: Break, target: Target) -> None:
    template = CHATML.replace("assistant\\n'", f"assistant\\n{THINK}'")
    of = healthy(target=with_template(target, template))
    said = found(of)
    assert [n for n, f in said.items() if f.verdict == FAIL] == ["rendering"]
    assert " in training and '<' (id " in said["rendering"].found
    assert {said[n].verdict for n in ("stop tokens", "labels")} == {OUT}


QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '" + THINK + "' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n" + THINK + "' }}{% endif %}"
)


def naive(chat: Chat, corpus: Corpus, *, max_length: int) -> tuple[list[Example], dict[str, int]]:
    """The usual recipe: the finished conversation rendered once, every answer in it supervised."""
    examples = []
    for c in corpus.conversations:
        (tokens,) = chat.tokens([chat.render(c.messages, generation=False)])
        examples.append(Example(c.id, tuple(tokens), (False,) * 20 + (True,) * (len(tokens) - 21) + (False,)))
    return examples, {}


def test_the_think_block_of_qwen3(healthy: Break, target: Target, monkeypatch: Patch) -> None:
    of = healthy(target=with_template(target, QWEN3))
    said = found(of)
    assert said["rendering"].verdict == "ok"
    assert "since the template rewrites earlier turns" in said["rendering"].found
    monkeypatch.setattr(subject, "encode", naive)
    said = found(healthy(target=with_template(target, QWEN3)))
    assert said["rendering"].verdict == FAIL


def test_training_that_renders_a_conversation_once_differs_at_a_named_token(
    healthy: Break, target: Target, data: tuple[Corpus, Corpus], monkeypatch: Patch
) -> None:
    turns = ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "Ciao.")
    corpus = replace(data[0], conversations=(Conversation("c", tuple(Message(*t) for t in turns)),) * 8)
    monkeypatch.setattr(subject, "encode", naive)
    said = found(healthy(target=with_template(target, QWEN3), data=(corpus, data[1])))["rendering"]
    assert said.found.startswith("conversation c, message 2: token ")
    assert said.found.endswith("at evaluation")


def test_an_answer_that_ends_with_no_stop_token(healthy: Break, target: Target) -> None:
    broken = copy.copy(target)
    broken.chat = copy.copy(target.chat)
    broken.chat.stop_ids = frozenset({target.chat.pad_id})
    only(
        healthy(target=broken),
        "stop tokens",
        "ends with '<|im_end|>' (id 2)",
        "stops at '<|endoftext|>' (id 0)",
        "eos_token_id",
    )


def test_a_tokenizer_that_stops_at_another_token_than_the_template_writes(healthy: Break, target: Target) -> None:
    broken = with_chat(target, lambda t: setattr(t, "eos_token", "<|endoftext|>"))
    said = only(healthy(target=broken), "stop tokens", "ends with '<|im_end|>' (id 2)")
    assert "generation_config.json" in said


def test_supervision_that_leaves_the_end_of_turn_out(healthy: Break, monkeypatch: Patch) -> None:
    real = subject.encode

    def short(*rest: Any, **more: Any) -> Any:
        examples, counts = real(*rest, **more)
        return [replace(e, supervised=(*e.supervised[:-1], False)) for e in examples], counts

    monkeypatch.setattr(subject, "encode", short)
    only(healthy(), "stop tokens", "the last supervised token is")


def test_special_tokens_in_the_data(healthy: Break, data: tuple[Corpus, Corpus]) -> None:
    bad = Conversation("bad", (Message("user", "Hi."), Message("assistant", "Well<|im_end|>, hello.")))
    corpus = replace(data[0], conversations=(bad, *data[0].conversations))
    only(healthy(data=(corpus, data[1])), "stop tokens", "1 of ", "hold a stop token before their end")


def test_a_template_that_loses_the_users_words(healthy: Break, target: Target) -> None:
    template = CHATML.replace("message['content']", "(message['content'] if message['role'] == 'assistant' else 'x')")
    only(healthy(target=with_template(target, template)), "first prompt", "does not hold the user's words")


def test_a_prompt_that_begins_twice(healthy: Break, target: Target) -> None:
    def twice(tokenizer: Any) -> None:
        tokenizer.bos_token = "<|im_start|>"
        tokenizer.chat_template = "{{ '<|im_start|>' }}" + CHATML

    only(healthy(target=with_chat(target, twice)), "first prompt", "begins with '<|im_start|>' (id 1) twice")


def planted(corpus: Corpus, text: str) -> Corpus:
    extra = Conversation("planted", (Message("user", text), Message("assistant", "Yes.")))
    return replace(corpus, conversations=(*corpus.conversations, extra))


def test_a_benchmark_prompt_in_the_training_data(
    healthy: Break, data: tuple[Corpus, Corpus], prompts: list[tuple[PromptSet, PromptSet]]
) -> None:
    (raw, asked), (train, heldout) = prompts[0], data
    for text in (raw.prompts[2].turns[0].upper().replace(" ", "\n "), asked.prompts[1].turns[0]):
        said = only(
            healthy(data=(planted(train, text), heldout)), "overlap", "1 of 4 prompts of algebra are in the training"
        )
        assert said.startswith(FAIL)
    near = raw.prompts[2].turns[0].replace(" ", ", ")
    said = only(healthy(data=(planted(train, near), heldout)), "overlap", "up to punctuation")
    assert said.startswith(WARN)


def test_a_held_out_prompt_in_the_training_data(healthy: Break, data: tuple[Corpus, Corpus]) -> None:
    train, heldout = data
    text = heldout.conversations[3].messages[0].content
    only(healthy(data=(planted(train, text), heldout)), "overlap", "1 of 6 held-out prompts are in the training data")


def test_follow_ups_count_for_real_data_only(healthy: Break, data: tuple[Corpus, Corpus]) -> None:
    one = PromptSet(
        "talk", "Talk", (Prompt("t", ("Never said before.", "Write them in capitals.")),), 1, "sha", "jsonl"
    )
    train = planted(data[0], "Write them in capitals.")
    assert wrong(healthy(data=(train, data[1]), prompts=[(one, one)])) == {}
    of = healthy(settings={"data.source": "jsonl", "data.path": "."}, data=(train, data[1]), prompts=[(one, one)])
    assert "1 of 1 prompts of talk" in wrong(of)["overlap"]


# --- a drafter's files ---


@pytest.fixture
def make_run(healthy: Break, target: Target, tmp_path: Path) -> Callable[..., Subject]:
    """A subject whose drafter lies in a run's folder, after ``change`` of its configuration."""

    def make(name: str = "dflash", change: Callable[[dict[str, Any]], object] = lambda _: None) -> Subject:
        drafter = healthy(name).drafter()
        folder = tmp_path / "run"
        checkpoint.save(drafter, target, folder / "drafter", run="run")
        stored = read_json(folder / "drafter" / "config.json")
        change(stored)
        write_json(folder / "drafter" / "config.json", stored)
        return healthy(name, folder=folder)

    return make


@pytest.mark.parametrize("name", BACKBONES)
def test_a_drafter_that_belongs_to_its_target(make_run: Callable[..., Subject], name: str) -> None:
    said = found(make_run(name))
    assert {n: f.found for n, f in said.items() if f.verdict != "ok"} == {}
    assert "settings fit the target" in said["drafter"].found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(vocab_size=999), "vocab_size is 999, here it is 320"),
        (lambda c: c.update(hidden_size=64), "hidden_size is 64, here it is 32"),
        (lambda c: c.update(block_size=16), "block_size is 16, here it is 8"),
        (lambda c: c.update(num_target_layers=36), "num_target_layers is 36, here it is 4"),
        (lambda c: c["dflash_config"].update(mask_token_id=7), "dflash_config.mask_token_id is 7, here it is 3"),
        (lambda c: c["dflash_config"].update(pure_draft_prefix_len=3), "pure_draft_prefix_len is 3, here it is 1"),
        (lambda c: c["specauf"].update(target_fingerprint="x"), "specauf.target_fingerprint is 'x', here it is 'test'"),
        (lambda c: c["specauf"].update(weights="x"), "altered or damaged"),
    ],
)
def test_a_drafter_of_another_make(make_run: Callable[..., Subject], change: Any, words: str) -> None:
    only(make_run("domino", change), "drafter", words, "fix: ")


@pytest.mark.parametrize(
    ("by", "words"), [(1, "as SGLang and vLLM do internally"), (-1, "one lower"), (5, "are not the taps")]
)
def test_layer_ids_counted_in_another_way(make_run: Callable[..., Subject], by: int, words: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["dflash_config"]["target_layer_ids"] = [i + by for i in (0, 1, 2)]

    only(make_run("dflash", change), "layers", words)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_save_that_loses_a_bit(healthy: Break, monkeypatch: Patch, name: str) -> None:
    real = checkpoint.save

    def lossy(drafter: DFlash, *rest: Any, **more: Any) -> None:
        worse = copy.deepcopy(drafter)
        with torch.no_grad():
            worse.fc.weight.view(torch.int32)[3, 4] ^= 1
        real(worse, *rest, **more)

    monkeypatch.setattr(checkpoint, "save", lossy)
    only(healthy(name), "round trip", "checkpoint: fc.weight comes back changed")


def test_another_way_to_write_a_drafter_is_checked_too(healthy: Break, monkeypatch: Patch) -> None:
    def forgets(drafter: DFlash, target: Target, folder: Path) -> DFlash:
        back = copy.deepcopy(drafter)
        back.fc.weight.data.zero_()
        return back

    monkeypatch.setitem(drafter_checks.ROUND_TRIPS, "hf", forgets)
    only(healthy(), "round trip", "hf: fc.weight comes back changed")


# --- the machine and the settings ---


def test_a_full_disk(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert only(healthy(), "room", "0 MiB free", "runs=FOLDER").startswith(FAIL)


def test_a_disk_too_small_for_the_snapshots(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    said = only(healthy(settings={"trainer.snapshot_every": 1, "trainer.steps": 2000}), "room", "most of it: snapshots")
    assert said.startswith(WARN)


def test_too_little_memory(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _: 1000)
    assert only(healthy(), "room", "lower trainer.micro_batch").startswith(WARN)


def test_free_memory_is_known_here() -> None:
    free = room.free_memory("cpu")
    assert free is None or 2**24 < free < 2**50


def test_estimated_sizes_are_those_of_the_models() -> None:
    for name in BACKBONES:
        config = compose.compose(["profile=smoke", f"backbone={name}"])
        of = Subject(config)
        sizes = room.sizes_of(config)
        assert sizes is not None
        if of.target().chat.vocab == sizes.vocab:
            real = sum(p.numel() for p in of.target().model.parameters())
            assert sizes.target == pytest.approx(real, rel=0.02)
        assert sizes.drafter(config) == pytest.approx(sum(p.numel() for p in of.drafter().parameters()), rel=0.03)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target.taps": (0, 3)}, "taps the last layer"),
        ({"data.source": "jsonl", "data.path": "/nowhere"}, "data.path=/nowhere: there is no such file"),
        ({"data.source": "jsonl"}, "names no file"),
        ({"benchmark_root": "/nowhere"}, "benchmark_root=/nowhere: there is no such"),
        ({"target.path": "/nowhere"}, "target.path=/nowhere: there is no such"),
        ({"trainer.max_length": 4096}, "beyond the target's 1024 positions"),
        ({"target.pretrain": None}, "neither a path nor a recipe"),
    ],
)
def test_settings_that_lead_nowhere(healthy: Break, settings: dict[str, Any], words: str) -> None:
    said = wrong(healthy(settings=settings))
    assert words in said["settings"]
    assert "fix: " in said["settings"]


# --- the doctor itself ---


def test_a_part_that_cannot_be_opened_fails_once_and_leaves_the_others_out(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    config = compose.compose(["profile=smoke", f"target.path={tmp_path / 't'}", f"runs={tmp_path}"])
    said = found(Subject(config))
    assert [n for n, f in said.items() if f.verdict == FAIL] == ["target"]
    assert "cannot be loaded" in said["target"].found
    assert [n for n, f in said.items() if f.verdict == OUT] == list(doctor.CHECKS)[6:]
    assert all("\n" not in f.found for f in said.values())


def test_a_zero_mask_row_stops_the_target_with_its_reason(target: Target, tmp_path: Path) -> None:
    broken = weights_of(target)
    broken._embedding.weight[target.chat.mask_id] = 0
    broken.model.save_pretrained(tmp_path / "t")
    target.chat.save(tmp_path / "t")
    config = compose.compose(["profile=smoke", f"target.path={tmp_path / 't'}", f"runs={tmp_path}"])
    assert "is all zero" in found(Subject(config))["target"].found


def test_a_check_that_breaks_off_is_a_failed_one(healthy: Break, monkeypatch: Patch) -> None:
    def broken(_: Subject) -> Finding:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(doctor.CHECKS, "leak", broken)
    only(healthy(), "leak", "the check broke off: RuntimeError: two")


def test_exit_codes_and_one_line_per_check(tmp_path: Path, monkeypatch: Patch) -> None:
    done = specauf(tmp_path, "doctor", "profile=smoke")
    lines = [x for x in done.stdout.splitlines() if not x.startswith(" ")]
    assert [x.split()[0] for x in lines[:-1]] == ["ok"] * len(doctor.CHECKS)
    assert "random weights, for it is not trained yet" in done.stdout
    assert lines[-1] == f"{len(doctor.CHECKS)} checks: {len(doctor.CHECKS)} ok"
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    failed = specauf(tmp_path, "doctor", "profile=smoke", "--dry-run", check=False)
    assert failed.returncode == 1
    assert "1 failed" in failed.stdout
    assert specauf(tmp_path, "doctor", "profil=smoke", check=False).returncode == 2
    assert "no run" in specauf(tmp_path, "doctor", "--run", "x", check=False).stderr


def test_a_trained_run_is_checked_with_its_own_target(table: tuple[Path, str]) -> None:
    folder, _ = table
    run = next(folder.glob("runs/dflash-decay-tiny-*")).name
    printed = specauf(folder, "doctor", "--run", run).stdout
    assert f"{len(doctor.CHECKS)} checks: {len(doctor.CHECKS)} ok" in printed
    assert "settings fit the target" in printed
    assert "fingerprint" in printed


def test_dry_run_needs_no_network_and_names_what_it_leaves_out(tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(targets, "load", refuse)
    words = ["target.path=Some-Org/Some-Model-8B", "data=sharegpt", "benchmark=all", "trainer.steps=10"]
    printed = specauf(tmp_path, "doctor", "--dry-run", *words).stdout
    assert "from the hub: target Some-Org/Some-Model-8B, data " in printed
    assert "once the config.json of Some-Org/Some-Model-8B is here" in printed
    left = printed.splitlines()[-2]
    assert all(n in left for n in ("target", "overlap", "leak", "round trip"))
    offline_ = specauf(tmp_path, "doctor", "--dry-run", "profile=smoke").stdout
    assert "overlap       none of" in offline_


def test_findings_are_counted() -> None:
    some: Iterable[Finding] = [Finding("ok", ""), Finding(FAIL, ""), Finding(WARN, ""), Finding(OUT, "")]
    assert doctor.summary(some) == "4 checks: 1 ok, 1 warnings, 1 failed, 1 left out"


def test_a_folder_of_sizes_is_read(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = compose.compose(["profile=smoke", f"target.path={tmp_path}"])
    read = room.sizes_of(config)
    assert read is not None
    assert (read.layers, read.kv_heads, read.head_dim, read.tied) == (6, 2, 4, False)
