"""Targets as they are published: sharded files, tied or not, padded vocabularies; which layers are tapped; what is
refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
)

from helpers.commands import specauf
from helpers.hub import KINDS, edit, publish, rename
from specauf_cli.config.compose import compose
from specauf_cli.config.identity import is_local
from specauf_cli.config.schema import TargetConfig
from specauf_cli.data.chat import CHATML, Chat
from specauf_cli.errors import InputError
from specauf_cli.models import sizes, structure
from specauf_cli.models import target as targets
from specauf_cli.models.target import spread, taps_of
from specauf_cli.store.provenance import command_line
from specauf_cli.store.records import run_id
from specauf_cli.types import Conversation, Message


def hub_config(folder: Path, **changes: Any) -> TargetConfig:
    found = compose(["target=hf", f"target.path={folder}", "target.taps=3"]).target
    return replace(found, dtype="fp32", **changes)


# --- the rule ---


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        (36, 5, (1, 9, 17, 25, 33)),
        (28, 5, (1, 7, 13, 19, 25)),
        (32, 5, (1, 8, 15, 22, 29)),
        (36, 1, (18,)),
        (6, 3, (1, 2, 3)),
    ],
)
def test_the_public_rule(layers: int, count: int, expected: tuple[int, ...]) -> None:
    assert spread(layers, count) == taps_of(count, layers) == expected
    assert taps_of(expected, layers) == expected


@pytest.mark.parametrize(("layers", "count"), [(4, 3), (8, 6), (36, 0), (36, 40)])
def test_a_rule_that_finds_too_few_layers_is_refused(layers: int, count: int) -> None:
    with pytest.raises(InputError, match=rf"target\.taps={count}\b"):
        taps_of(count, layers)


# --- names and identity ---


def test_a_model_of_the_hub_by_its_name() -> None:
    found = compose(["target=hf", "target.name=ORG/Some.Model-7B"])
    assert (found.target.name, found.target.path, found.target.title) == (
        "Some.Model-7B",
        "ORG/Some.Model-7B",
        "Some.Model-7B",
    )
    assert compose(["target=hf", "target.path=ORG/Some.Model-7B"]).target == found.target
    assert compose(["target=hf", "target.name=ORG/Some.Model-7B", "profile=smoke"]).target == found.target
    with pytest.raises(InputError, match=r"target=hf needs .*target\.name=ORG/NAME.*target\.path=DIR"):
        compose(["target=hf"])


def test_how_a_machine_runs_a_target_is_not_its_identity(tmp_path: Path) -> None:
    def name(*more: str) -> str:
        return run_id(compose(["target=qwen3_4b", *more]), target="t", data="d")

    assert name() == name("target.attention=eager") == name("target.device_map=auto")
    assert name() != name("target.dtype=fp32")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    assert name(f"target.path={here}") == name(f"target.path={there}")
    assert str(tmp_path) not in repr(compose([f"target.path={here}"]).resolved)
    assert str(tmp_path) not in command_line(["train", f"target.path={here}"])
    assert command_line(["train", "target.name=ORG/NAME"]) == "specauf train target.name=ORG/NAME"
    assert not is_local("")


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_ids_of_targets_trained_here_stay(name: str) -> None:
    """Settings that came later are not in what their runs are named by."""
    kept = {"name", "title", "path", "revision", "taps", "mask_token", "trust_remote_code", "pretrain"}
    assert set(compose([f"target={name}"]).resolved["target"]) == kept


@pytest.mark.parametrize(("backbone", "anchors", "batch"), [("dflash", 512, 32), ("domino", 256, 16)])
def test_large_profiles_compose_without_network(backbone: str, anchors: int, batch: int) -> None:
    for profile, objective in [
        ("paper", "decay"),
        ("single_gpu", "auf_decay" if backbone == "dflash" else "s_auf_decay"),
    ]:
        found = compose([f"profile={profile}", f"backbone={backbone}", f"objective={objective}"])
        trainer = found.trainer
        assert (trainer.anchors, trainer.batch_size, trainer.epochs, trainer.lr) == (anchors, batch, 6, 6e-4)
        assert (found.backbone.block_size, found.backbone.layers, trainer.max_length) == (16, 5, 3072)
        assert found.target.name == {"paper": "qwen3_8b", "single_gpu": "qwen3_4b"}[profile]
        assert (trainer.precision, found.target.dtype, found.evaluation.precision) == ("bf16", "bf16", "bf16")


# --- loading ---


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize(("tied", "padding"), [(True, 0), (False, 8), (True, 8)])
def test_a_published_folder_loads(tmp_path: Path, chat: Chat, kind: str, tied: bool, padding: int) -> None:
    folder = publish(tmp_path / "model", chat, kind, tied=tied, padding=padding)
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    mask = None if padding else "<|mask|>"
    found = targets.load(hub_config(folder, mask_token=mask), device="cpu")
    assert found.taps == (1, 2, 3)
    assert found.chat.mask_id == (chat.vocab if padding else chat.mask_id)
    tokens = torch.randint(4, chat.vocab, (2, 9))
    with torch.no_grad():
        out = found.model(input_ids=tokens, output_hidden_states=True)
    torch.testing.assert_close(
        found.features(tokens), torch.cat([out.hidden_states[i + 1] for i in found.taps], dim=-1)
    )
    logits, _ = found.forward(tokens, found.new_cache())
    torch.testing.assert_close(logits, out.logits[..., : chat.vocab])
    assert sizes.of(found.config) == sizes.of_model(found.model.config)
    exact = sizes.target_parameters(sizes.of_model(found.model.config))
    assert exact == pytest.approx(sum(p.numel() for p in found.model.parameters()), rel=0.02)
    about = found.describe()
    assert (about["type"], about["taps"], about["fingerprint"]) == (kind, [1, 2, 3], found.fingerprint)
    assert str(tmp_path) not in json.dumps(about)


def test_a_hub_snapshot_is_named_by_its_commit(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    publish(repository / "snapshots" / commit, chat, "qwen3", tied=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    import huggingface_hub.constants
    import transformers.utils.hub

    for module, name in ((huggingface_hub.constants, "HF_HUB_CACHE"), (transformers.utils.hub, "HF_HUB_CACHE")):
        monkeypatch.setattr(module, name, str(tmp_path), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = replace(compose(["target=hf", "target.name=org/tiny", "target.taps=3"]).target, mask_token="<|mask|>")
    found = targets.load(config, device="cpu")
    assert found.fingerprint == commit
    assert found.model.dtype == torch.bfloat16
    assert found.describe()["path"] == "org/tiny"


def test_a_free_row_is_a_reserved_token_where_nothing_is_padded(tmp_path: Path, chat: Chat) -> None:
    folder = publish(tmp_path / "model", chat, "llama", tied=False, padding=1)
    with pytest.raises(InputError, match="no mask token and no reserved token"):
        targets.load(hub_config(publish(tmp_path / "full", chat, "llama", tied=False)), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_special_token_0|>"]})
    tokenizer.save_pretrained(folder)
    assert targets.load(hub_config(folder), device="cpu").chat.mask_id == chat.vocab


def test_rows_of_zeros_are_passed_over_and_refused(tmp_path: Path, chat: Chat) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True, padding=4)
    found = targets.load(hub_config(folder), device="cpu")
    with torch.no_grad():
        found.model.get_input_embeddings().weight[chat.vocab : chat.vocab + 2] = 0
    assert targets.free_row(found.chat, found.model.get_input_embeddings().weight) == chat.vocab + 2
    found.model.save_pretrained(folder)
    with pytest.raises(InputError, match="is all zero"):
        targets.load(hub_config(folder, mask_token=chat.vocab), device="cpu")


def test_fingerprints_cover_templates_and_vocabularies_of_either_layout(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    seen = set()
    for name, text in (
        ("vocab.json", "{}"),
        ("merges.txt", "a b"),
        ("merges.txt", "b a"),
        ("tokenizer_config.json", '{"chat_template": "x"}'),
        ("tokenizer_config.json", '{"chat_template": "y"}'),
        ("tokenizer_config.json", '{"chat_template": "y", "eos_token": "<|im_end|>"}'),
    ):
        (folder / name).write_text(text)
        seen.add(targets.content_fingerprint(folder))
    assert len(seen) == 6


# --- refusals ---


def test_other_sizes_than_stated_are_refused(tmp_path: Path, chat: Chat) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True)
    stated = compose(["target=qwen3_0_6b"]).target.sizes
    with pytest.raises(InputError, match=r"does not have the sizes of target=model: hidden_size is 32, not 1024"):
        targets.load(hub_config(folder, mask_token="<|mask|>", sizes=stated), device="cpu")


def test_pickled_weights_are_refused(tmp_path: Path, chat: Chat) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True)
    model = KINDS["qwen3"][1].from_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        targets.load(hub_config(folder, mask_token="<|mask|>"), device="cpu")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("lost", r"its files hold no model\.layers\.3\..* and \d+ more; get the whole checkpoint"),
        ("cut", r"its files hold another shape of model\.layers\.0\.mlp\.down_proj\.weight and 17 more"),
        ("nan", "gives logits that are not finite: its weights are damaged"),
    ],
)
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, chat: Chat, damage: str, says: str) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True)
    model = KINDS["qwen3"][1].from_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    model.save_pretrained(folder)
    if damage == "cut":
        edit(folder, lambda c: c.update(intermediate_size=48))
    elif damage == "lost":
        rename(folder, lambda held: {k: v for k, v in held.items() if "layers.3." not in k})
    else:
        rename(folder, lambda held: {k: v / 0 if "layers.3.mlp" in k else v for k, v in held.items()})
    with pytest.raises(InputError, match=says):
        targets.load(hub_config(folder, mask_token="<|mask|>"), device="cpu")


def test_code_of_a_repository_is_not_run_unless_asked(tmp_path: Path, chat: Chat) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        targets.load(hub_config(folder, mask_token="<|mask|>"), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_models_built_otherwise_are_refused_with_what_they_lack(tmp_path: Path, chat: Chat) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True)
    for path in [*folder.glob("model*"), folder / "config.json"]:
        path.unlink()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=chat.vocab, is_decoder=True, **sizes)).save_pretrained(folder)
    with pytest.raises(InputError, match="'bert' has no list of its 4 decoder layers"):
        targets.load(hub_config(folder, mask_token="<|mask|>"), device="cpu")


HIDDEN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4}
ATTENTION: dict[str, Any] = HIDDEN | {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 2,
    "num_local_experts": 2,
}
STATE = (
    "has linear_attention layers, whose cache cannot be rolled back after a rejected draft; choose a target with full"
)
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": (HIDDEN | {"state_size": 8}, STATE),
    "recurrent_gemma": (ATTENTION | {"lru_width": 32}, STATE),
    "jamba": (ATTENTION | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}, STATE),
    "llama4_text": (ATTENTION | {"intermediate_size_mlp": 64, "head_dim": 8}, STATE.replace("linear", "chunked")),
    "bloom": (HIDDEN | {"n_head": 4}, r"does not say its longest context \(max_position_embeddings\)"),
    "t5": (
        {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 4},
        "reads prompts with an encoder, .*decoder-only",
    ),
    "bart": (
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
        "reads prompts with an encoder, .*decoder-only",
    ),
}
"""Models of transformers that cannot serve: recurrent, hybrid, chunked attention, no limit, an encoder."""


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_cannot_serve_are_refused_in_one_line(tmp_path: Path, chat: Chat, kind: str) -> None:
    folder = publish(tmp_path / "model", chat, "qwen3", tied=True)
    for path in [*folder.glob("model*"), folder / "config.json"]:
        path.unlink()
    knobs, says = UNFIT[kind]
    config = AutoConfig.for_model(kind, vocab_size=chat.vocab, **knobs)
    make = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    make.from_config(config).save_pretrained(folder)
    with pytest.raises(InputError, match=f"target of type '{kind}' {says}") as refused:
        targets.load(hub_config(folder, mask_token="<|mask|>"), device="cpu")
    assert "\n" not in str(refused.value)


def test_a_head_that_is_not_linear_is_refused(chat: Chat) -> None:
    config_kind, model_kind = KINDS["llama"]
    model = model_kind(config_kind(vocab_size=chat.vocab, hidden_size=16, num_hidden_layers=4, num_attention_heads=2))
    structure.check_parts(model)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(InputError, match="'llama' has no linear output head"):
        structure.check_parts(model)


def test_logits_changed_behind_the_head_are_refused(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path / "model", chat, "llama", tied=True)
    kind = KINDS["llama"][1]
    plain = kind.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * 0.25
        return out

    monkeypatch.setattr(kind, "forward", scaled)
    with pytest.raises(InputError, match="'llama' changes its logits after the head"):
        targets.load(hub_config(folder, mask_token="<|mask|>"), device="cpu")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"device_map='auto' needs the package accelerate"):
        targets.load(hub_config(tmp_path, device_map="auto"), device="cpu")
    with pytest.raises(InputError, match="needs the package flash-attn"):
        targets.load(hub_config(tmp_path, attention="flash_attention_2"), device="cpu")
    for word, says in (("attention=flash", "sdpa"), ("device_map=cuda", "balanced"), ("dtype=fp8", "bf16")):
        with pytest.raises(InputError, match=f"is none of .*{says}"):
            compose([f"target.{word}"])


# --- rendering ---


def test_the_empty_think_block_is_in_every_supervised_prefix(tmp_path: Path, chat: Chat) -> None:
    loaded = Chat.load(hub_config(publish(tmp_path / "model", chat, "qwen3", tied=True), mask_token="<|mask|>"))
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "See you.")]
    conversation = Conversation("c", tuple(Message(*t) for t in turns))
    for (prompt, answer), at in zip(loaded.answers(conversation), (1, 3), strict=True):
        assert prompt == loaded.render(conversation.messages[:at], generation=True)
        assert prompt.count("<think>") == 1
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert answer == f"{conversation.messages[at].content}<|im_end|>\n"


def test_a_date_in_the_prompt_is_not_that_of_the_day(tmp_path: Path, chat: Chat) -> None:
    loaded = Chat.load(hub_config(publish(tmp_path / "model", chat, "llama", tied=True), mask_token="<|mask|>"))
    assert "Today: 26 Jul 2024<" in loaded.render([Message("user", "Hi")], generation=True)


def test_the_real_qwen_tokenizer_on_a_padded_vocabulary(tmp_path: Path) -> None:
    source = Path(os.environ.get("SPECAUF_DATA", "/nonexistent")) / "qwen2.5-tokenizer"
    if not source.is_dir():
        pytest.skip("SPECAUF_DATA names no folder with qwen2.5-tokenizer")
    config_kind, model_kind = KINDS["qwen3"]
    rows = 151_936  # as published, for 151,665 entries
    folder = tmp_path / "model"
    model_kind(
        config_kind(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=5,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, **settings}))
    found = targets.load(replace(hub_config(folder), taps=2), device="cpu")
    assert found.chat.vocab == 151_665
    assert found.chat.mask_id == 151_665  # the first row that no token uses
    tokens = torch.tensor([found.chat.prompt([Message("user", "2 + 2 = ?")])])
    assert found.head(found.model.model(tokens).last_hidden_state).shape[-1] == 151_665
    assert found.features(tokens).shape[-1] == 32


TURNS = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}"
PLAIN = TURNS + "{{ '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def without_template(folder: Path) -> Path:
    """``folder`` as a base model has it."""
    for path in folder.glob("chat_template*"):
        path.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if "template" not in k})
    )
    return folder


def test_a_target_without_a_chat_template_can_be_given_one(tmp_path: Path, chat: Chat) -> None:
    config = hub_config(without_template(publish(tmp_path / "model", chat, "llama", tied=True)), mask_token="<|mask|>")
    with pytest.raises(InputError, match=r"has no chat template; give a file .* target\.chat_template=FILE, or choose"):
        targets.load(config, device="cpu")
    file = tmp_path / "plain.jinja"
    for text, says in ((None, r"cannot be read: "), (" \n", "is empty; it holds a chat template")):
        if text is not None:
            file.write_text(text)
        with pytest.raises(InputError, match=rf"target\.chat_template=.*plain\.jinja {says}"):
            targets.load(replace(config, chat_template=str(file)), device="cpu")
    file.write_text(PLAIN)
    found = targets.load(replace(config, chat_template=str(file)), device="cpu")
    assert found.chat.render([Message("user", "Hi")], generation=True) == "user: Hi\nassistant: "
    ((prompt, answer),) = found.chat.answers(Conversation("c", (Message("user", "Hi"), Message("assistant", "Yes"))))
    assert (prompt, answer) == ("user: Hi\nassistant: ", "Yes<|im_end|>")
    file.write_text("{{ messages[0].content")
    with pytest.raises(InputError, match=r"the chat template of .* cannot render the turns user: "):
        targets.load(replace(config, chat_template=str(file)), device="cpu").chat.prompt([Message("user", "Hi")])


def test_a_given_template_is_part_of_the_identity_by_its_content(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path / "model", chat, "llama", tied=True)
    prints = []
    for place, text in (("a.jinja", CHATML), ("b.jinja", CHATML), ("b.jinja", PLAIN), (None, "")):
        if place is not None:
            (tmp_path / place).write_text(text)
        file = None if place is None else str(tmp_path / place)
        config = hub_config(folder, mask_token="<|mask|>", chat_template=file)
        prints.append(targets.load(config, device="cpu").fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    monkeypatch.chdir(tmp_path)
    words = ["target=hf", f"target.path={folder}", "target.chat_template=a.jinja"]
    resolved = compose(words).resolved["target"]
    assert resolved["chat_template"] == "FILE"
    assert "chat_template" not in compose(words[:2]).resolved["target"]
    assert command_line(["train", *words[1:]]) == "specauf train target.path=DIR target.chat_template=FILE"
    with pytest.raises(
        InputError, match=r"target\.chat_template=a\.jinja is for a target that is loaded; target=tiny is"
    ):
        compose(["target=tiny", "+target.chat_template=a.jinja"])


# --- train and measure ---


@pytest.mark.parametrize(
    ("kind", "backbone", "settings"),
    [
        (
            "qwen3",
            "dflash",
            ["target.dtype=bf16", "trainer.precision=fp32", "trainer.eval_every=4", "trainer.eval_prompts=1"],
        ),
        ("llama", "domino", ["target.dtype=bf16", "trainer.micro_batch=4", "evaluation.precision=bf16"]),
        ("qwen3", "dflash", ["target.dtype=fp32", "trainer.labels=target", "evaluation.precision=bf16"]),
    ],
)
def test_a_published_target_is_trained_on_and_measured(
    tmp_path: Path, chat: Chat, kind: str, backbone: str, settings: list[str]
) -> None:
    publish(tmp_path / "model", chat, kind, tied=False, padding=8)
    common = [
        "profile=smoke",
        "trainer.precision=bf16",
        "target=hf",
        "target.path=model",
        "target.taps=3",
        f"backbone={backbone}",
        *settings,
    ]
    small = ["data.limit=40", "data.heldout=6", "trainer.steps=4", "benchmark=offline_algebra"]
    specauf(tmp_path, "train", *common, *small)
    printed = specauf(tmp_path, "eval", "evaluation.prompts=1", "evaluation.temperatures=[0.0]").stdout
    (path,) = tmp_path.glob("runs/*/records/*.json")
    record = json.loads(path.read_text())
    assert "tau" in printed
    assert record["config"]["target"]["path"] == "DIR"
    assert record["inputs"]["target"] == record["target"]["fingerprint"]
    assert record["target"]["taps"] == [1, 2, 3]
    audits = [b["audit"] for b in record["benchmarks"]]
    if "evaluation.precision=bf16" not in settings:
        assert all(a["identical"] == a["requests"] == a["same_rounds"] for a in audits)
