"""Every setting that cannot work is named, with what would, when the configuration is made."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from specauf_cli.config import compose, limits
from specauf_cli.errors import InputError
from specauf_cli.models.dflash import DFlash
from specauf_cli.objectives.loss import NORMALIZE

WRONG = [
    ("seed=-1", "seed=-1 must be at least 0"),
    ("seed=4294967296", "seed=4294967296 must be at most 2,147,483,647"),
    ("threads=0", "threads=0 must be at least 1"),
    ("runs=''", "runs='' must not be empty"),
    ("profile.name=a/b", "becomes part of file names"),
    ("objective.name=''", "becomes part of file names"),
    ("target.pretrain.precision=fp8", "'fp8' is none of fp32, bf16"),
    ("target.pretrain.lr=nan", "must be a finite number"),
    ("target.pretrain.steps=0", "target.pretrain.steps=0 must be at least 1"),
    ("target.pretrain.kv_heads=3", "heads=2 must be a multiple of kv_heads=3"),
    ("target.pretrain.head_dim=15", "must be even"),
    ("target.pretrain.row_length=2000", "must be at most max_positions=1024"),
    ("trainer.max_length=4096", "must be at least trainer.max_length=4096"),
    ("target.pretrain.vocab_size=3", "must be at least 300"),
    ("backbone.init_std=0", "backbone.init_std=0 must be above 0"),
    ("backbone.block_size=1", "is too small"),
    ("backbone.attention=flash", "is none of auto, dense, split, flex"),
    ("backbone.layers=0", "must be at least 1"),
    ("+objective.final_reads=last", "is none of base, final"),
    ("trainer.lr=0", "trainer.lr=0 must be above 0"),
    ("trainer.lr=inf", "must be a finite number"),
    ("trainer.betas=[0.9,1.0]", "trainer.betas=1.0 must be at most"),
    ("trainer.weight_decay=-1", "must be at least 0"),
    ("trainer.warmup=1.5", "must be at most 1"),
    ("trainer.snapshot_every=0", "trainer.snapshot_every=0 must be at least 1"),
    ("trainer.lambda_start=1.5", "must be at most 1"),
    ("trainer.lambda_ratio=0", "must be above 0"),
    ("trainer.anchors=0", "trainer.anchors=0 must be at least 1"),
    ("trainer.features=cache", "'cache' is none of online, memory, disk"),
    ("trainer.precision=fp16", "'fp16' is none of fp32, bf16"),
    ("trainer.normalize=blokc", "Did you mean 'block'?"),
    ("trainer.head=prune", "Did you mean 'pruned'?"),
    ("trainer.eval_every=3", "must be a multiple of trainer.log_every=4"),
    ("trainer.save_minutes=0", "must be above 0"),
    ("trainer.labels=own", "is none of data, target"),
    ("trainer.steps=0", "trainer.steps=0 must be at least 1"),
    ("trainer.epochs=1", "set exactly one of trainer.steps (24) and trainer.epochs (1)"),
    ("trainer.micro_batch=3", "must be a multiple of trainer.micro_batch=3"),
    ("data.heldout=0", "data.heldout=0 must be at least 1"),
    ("evaluation.mode=replai", "'replai' is none of replay, decode. Did you mean 'replay'?"),
    ("evaluation.precision=fp16", "'fp16' is none of fp32, bf16"),
    ("evaluation.temperatures=[]", "give one or more different ones"),
    ("evaluation.temperatures=[0,0]", "give one or more different ones"),
    ("evaluation.temperatures=[0,1e-9]", "each 0 or 0.01..100"),
    ("evaluation.temperatures=[inf]", "must be a finite number"),
    ("evaluation.max_new_tokens=1", "must be at least 2"),
    ("evaluation.audit=-1", "evaluation.audit=-1 must be at least 0"),
    ("evaluation.heldout_anchors=0", "must be at least 1"),
    ("benchmark.offline_chat.name=foo", "must be 'offline_chat'"),
    ("benchmark.offline_chat.limit=0", "must be at least 1"),
    ("+domino.rank=3", "unknown setting domino.rank"),
    ("domino=null", "unknown setting domino.None"),
    ("benchmark_root=", "benchmark_root='' must not be empty"),
    ("experiment=null", "experiment is one of"),
    (f"trainer.steps={'9' * 400}", "must be at most"),
    (f"seed={'9' * 400}", "must be at most"),
    (f"trainer.lr={'9' * 400}", "must be at most"),
]


@pytest.mark.parametrize(("override", "says"), WRONG, ids=[w[:40] for w, _ in WRONG])
def test_wrong_settings_are_named(override: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        compose.compose(["profile=smoke", override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gamma", ["0", "-1", "inf", "true", "abc", "null"])
def test_a_knob_of_a_credit(gamma: str) -> None:
    with pytest.raises(InputError, match=r"gamma"):
        compose.compose(["profile=smoke", "objective=decay", f"objective.base.gamma={gamma}"])


def test_rules_name_settings_that_exist() -> None:
    raw = OmegaConf.to_container(compose.compose_raw(["objective=decay", "backbone=domino"]))
    large = OmegaConf.to_container(
        compose.compose_raw(["target=qwen3_8b", "data=sharegpt"])
    )  # of these the sizes are known
    for rule in limits.RULES:
        found: Any = large if rule.startswith(("target.sizes", "data.known")) else raw
        for part in rule.split("."):
            assert isinstance(found, dict), rule
            found = next(iter(found.values())) if part == "*" and rule.startswith("benchmark") else found
            found = found["base"] if part == "*" and rule.startswith("objective") else found
            if part != "*":
                assert part in found, rule
                found = found[part]


def test_every_word_a_rule_admits_is_one_the_code_knows(backbone: Any) -> None:
    rule = limits.RULES["trainer.normalize"]
    assert isinstance(rule, limits.OneOf)
    assert rule.words == NORMALIZE
    limits.check_backbone(backbone)
    assert DFlash.first == 1


@pytest.mark.parametrize("name", ["objective", "profile", "backbone"])
@pytest.mark.parametrize("pattern", ["{}=null", "{}=", "~{}", "{}=[auf,decay]"])
def test_a_group_needs_one_choice(name: str, pattern: str) -> None:
    with pytest.raises(InputError, match=f"{name} is one of"):
        compose.compose([pattern.format(name)])


def test_paths_are_taken_as_typed() -> None:
    config = compose.compose(["profile=smoke", "runs=/tmp/a b (c)/it's=1,2"])
    assert config.runs == "/tmp/a b (c)/it's=1,2"
    assert not compose.compose(["profile=smoke", "runs=~/x"]).runs.startswith("~")
