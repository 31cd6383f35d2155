"""Every setting refuses what it cannot be, in one line with its key; what it admits is what the code knows."""

import copy
from pathlib import Path
from typing import Any

import pytest

from specauf_cli.config import compose, identity, reference, settings
from specauf_cli.config.schema import Config, TrainerConfig
from specauf_cli.config.settings import Setting
from specauf_cli.errors import InputError
from specauf_cli.models.target import DTYPES
from specauf_cli.objectives import head
from specauf_cli.objectives.loss import NORMALIZE


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """A configuration with every section that there is, as plain values."""
    plain = compose.plain_values(["profile=smoke", "backbone=domino", "objective=b_auf_decay", "init=a"])
    plain["objective"]["aliases"] = {"dflash": "auf"}
    large = compose.plain_values(["target=qwen3_8b", "data=sharegpt"])
    plain["target"] |= {"sizes": large["target"]["sizes"], "path": None}
    plain["target"]["pretrain"]["more"] = {"sliding_window": 8}
    plain["data"]["known"] = large["data"]["known"]
    return {k: v for k, v in plain.items() if k not in (*compose.SIZED, "experiment", "recipe")}


def test_the_values_are_valid(values: dict[str, Any]) -> None:
    assert settings.validated(Config, values).seed == 0


def place(values: dict[str, Any], setting: Setting, value: Any) -> tuple[dict[str, Any], str]:
    """``values`` with one setting changed, and the key under which an error must name it."""
    changed = copy.deepcopy(values)
    inner, steps = changed, []
    for part in setting.key.split(".")[:-1]:
        steps.append(next(iter(inner)) if part == "*" else part)
        inner = inner[steps[-1]]
    last = setting.key.rpartition(".")[2]
    steps.append(next(k for k in inner if k not in ("credit",)) if last == "*" else last)
    inner[steps[-1]] = value
    return changed, ".".join(steps)


def wrong_values(setting: Setting) -> list[Any]:
    """Values that a setting must refuse, from what it says is valid."""
    wrong: list[Any] = [{"a": 1}, ["\0", {}]]
    for part in setting.valid.split(" | "):
        if part.startswith("whole number"):
            wrong += [2.5, float("nan"), float("inf")]
            wrong += [10**400, -1] if ".." in part or "from" in part else []
        elif part.startswith("number") and part != "number or text":
            wrong += [float("nan"), float("inf"), 10**400, -1]
    if "text" not in setting.valid and "name" not in setting.valid:
        wrong += ["no such word"]
    if setting.valid == "name":
        wrong += ["", "a/b", "../x", 7]
    if "true" not in setting.valid and "text" not in setting.valid:
        wrong += [True]
    return wrong


@pytest.mark.parametrize("setting", settings.settings(), ids=lambda s: s.key)
def test_a_setting_refuses_what_it_cannot_be(values: dict[str, Any], setting: Setting) -> None:
    for wrong in wrong_values(setting):
        changed, key = place(values, setting, wrong)
        with pytest.raises(InputError) as caught:
            settings.validated(Config, changed)
        text = str(caught.value)
        assert "\n" not in text
        # Knobs stand beside the name of their credit in yaml; a wrong list says at which place it is wrong.
        assert text.startswith((key, key.replace("base.", "base.knobs.").replace("final.", "final.knobs."))), text


@pytest.mark.parametrize("setting", settings.settings(), ids=lambda s: s.key)
def test_every_word_that_a_setting_admits_is_valid(values: dict[str, Any], setting: Setting) -> None:
    words = [w for w in setting.valid.split(" | ") if w not in ("null", "text", "name") and "number" not in w]
    for word in words if not setting.valid.startswith("list") else []:
        value = {"true": True, "false": False}.get(word, word)
        settings.validated(Config, place(values, setting, value)[0])


@pytest.mark.parametrize("setting", settings.settings(), ids=lambda s: s.key)
def test_every_setting_says_what_it_means(setting: Setting) -> None:
    assert setting.meaning


def test_words_are_those_that_the_code_knows() -> None:
    known = {
        "trainer.normalize": NORMALIZE,
        "trainer.head": ("auto", *head.WAYS),
        "trainer.precision": tuple(DTYPES),
        "evaluation.precision": tuple(DTYPES),
        "target.dtype": tuple(DTYPES),
    }
    for key, words in known.items():
        found = settings.find(key)
        assert found is not None
        assert set(found.valid.split(" | ")) == set(words), key


ACROSS = [
    ("trainer.epochs=1", "set exactly one of trainer.steps (24) and trainer.epochs (1)"),
    ("trainer.steps=0", "trainer.steps=0 must be at least 1"),
    ("trainer.eval_every=3", "must be a multiple of trainer.log_every=4"),
    ("trainer.micro_batch=3", "must be a multiple of trainer.micro_batch=3"),
    ("trainer.max_length=4096", "must be at least trainer.max_length=4096"),
    ("target.pretrain.kv_heads=3", "heads=2 must be a multiple of kv_heads=3"),
    ("target.pretrain.head_dim=15", "must be even"),
    ("target.pretrain.row_length=2000", "must be at most max_positions=1024"),
    ("evaluation.temperatures=[0,0]", "is there twice"),
    ("benchmark.offline_chat.name=foo", "must be 'offline_chat'"),
    ("backbone.proposals=16", "is out of range; valid: 1..15 at block_size 16"),
    (
        "backbone.kind=dflsh",
        "is none of dflash, domino, dspark, medusa, recurrent; your own code is named package.module.name. Did",
    ),
    ("objective.base.credit=auff", "is none of full_ce, decay, auf, auf_decay, dpace, "),
    ("objective.base.credit=os.getcwd", "os.getcwd is no credit, it fails on a block"),
    ("objective.base.credit=math.nothing", "module math has no 'nothing'"),
    ("objective.base.credit=no.such.module", "cannot be imported"),
    ("+objective.base.gamma=3", "objective.base.gamma is not one of its knobs: it has none"),
    ("+domino.rank=3", "unknown setting domino.rank"),
    ("experiment=null", "is for specauf train -m"),
    (
        "+objective.base.loss=kll",
        "objective.base.loss='kll' is none of ce, kl, reverse_kl, js, tv, nla, lk, renyi, confidence; your",
    ),
    ("+objective.base.loss=lk", "objective.base.scale is missing; its knobs are: scale, slope"),
    ("+objective.base.loss=math.sqrt", "must take (logits, labels), and after them nothing, target_logits, or"),
    (
        "+objective.base.normalize=sequnce",
        "is none of credit, block_credit, valid, blocks, sequence. Did you mean 'seq",
    ),
    ("+objective.base.weight=0.0", "objective.base.weight=0.0 must be above 0"),
]
WORDING = [
    ("seed=-1", "seed=-1 must be at least 0"),
    ("seed=4294967296", "seed=4294967296 must be at most 2,147,483,647"),
    ("trainer.lr=0", "trainer.lr=0 must be above 0"),
    ("trainer.lr=nan", "trainer.lr=nan must be a finite number"),
    ("trainer.lr=high", "trainer.lr='high' is not valid; expected a number"),
    ("trainer.steps=many", "trainer.steps='many' is not valid; expected a whole number"),
    (
        "trainer.normalize=blokc",
        "trainer.normalize='blokc' is none of credit, block_credit, valid, blocks, sequence. Did you mean 'blocks'?",
    ),
    ("trainer.betas=[0.9,1.0]", "trainer.betas[1]=1.0 must be at most 0.999999"),
    ("evaluation.temperatures=[]", "evaluation.temperatures=[] needs 1 or more"),
    ("evaluation.temperatures=[0,1e-9]", "evaluation.temperatures[1]=1e-09 must be 0 or at least 0.01"),
    ("runs=''", "runs='' must not be empty"),
    ("profile.name=a/b", "becomes part of file names"),
    ("+trainer.stepz=5", "unknown setting trainer.stepz. Did you mean 'steps'?"),
    (f"trainer.lr={'9' * 400}", "trainer.lr=99999"),
]


@pytest.mark.parametrize(("override", "says"), ACROSS + WORDING, ids=[w[:40] for w, _ in ACROSS + WORDING])
def test_wrong_settings_are_said_in_one_line(override: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        compose.compose(["profile=smoke", override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gamma", ["0", "-1", "inf", "true", "abc", "null", "[4]"])
def test_a_knob_of_a_credit(gamma: str) -> None:
    with pytest.raises(InputError, match=r"gamma"):
        compose.compose(["profile=smoke", "objective=decay", f"objective.base.gamma={gamma}"])


@pytest.mark.parametrize("name", ["objective", "profile", "backbone"])
@pytest.mark.parametrize("pattern", ["{}=null", "{}=", "~{}", "{}=[auf,decay]"])
def test_a_group_needs_one_choice(name: str, pattern: str) -> None:
    with pytest.raises(InputError, match=f"{name} is one of"):
        compose.compose([pattern.format(name)])


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InputError, match=r"^trainer\.steps is missing$"):
        settings.validated(TrainerConfig, {}, "trainer")


# --- what follows from the marks ---


def test_identity_is_what_determines_the_weights(values: dict[str, Any]) -> None:
    recorded = settings.recorded(values)
    assert settings.identity(recorded) == settings.identity(values), "what is recorded is enough to know a run"
    for setting in settings.settings():
        changed, _ = place(values, setting, "other")
        same = settings.identity(changed) == settings.identity(values)
        assert same == (setting.counts != "run"), setting.key
        same = settings.recorded(changed) == recorded
        assert same == (setting.counts == "machine"), setting.key


def test_a_setting_that_came_later_keeps_the_ids_of_runs_from_before(values: dict[str, Any]) -> None:
    before = settings.identity(values)
    assert "dtype" not in before["target"]
    assert "regenerate" not in before["data"]
    values = copy.deepcopy(values)
    values["target"]["dtype"] = "bf16"
    assert settings.identity(values)["target"]["dtype"] == "bf16"


def test_a_folder_is_never_recorded(values: dict[str, Any]) -> None:
    values = copy.deepcopy(values)
    values["target"]["path"] = values["data"]["path"] = values["runs"] = values["data_root"] = "/somewhere/private"
    assert "private" not in repr(settings.recorded(values))
    values["target"]["path"] = "ORG/NAME"
    assert settings.recorded(values)["target"]["path"] == "ORG/NAME"


@pytest.mark.parametrize("word", ["trainer.max_length=128", "threads=1", "target.pretrain.steps=9", "data.limit=300"])
def test_runs_that_are_trained_together_share_target_and_data(word: str) -> None:
    mine = compose.compose(["profile=smoke"])
    assert settings.shared(mine) == settings.shared(compose.compose(["profile=smoke", "objective=decay", "seed=3"]))
    assert settings.shared(mine) != settings.shared(compose.compose(["profile=smoke", word]))


def test_a_configuration_of_version_0_1_is_read_as_todays() -> None:
    old = {
        "objective": {
            "name": "decay",
            "base": {"_target_": "specauf_cli.objectives.credits.decay", "_partial_": True, "gamma": 7},
            "final": {"_target_": "mine.own", "_partial_": True},
        },
        "backbone": {"name": "x", "model": {"_target_": "specauf_cli.models.domino.Domino", "_partial_": True, "k": 1}},
        "seed": 0,
    }
    assert identity.upgraded(old) == {
        "objective": {"name": "decay", "base": {"credit": "decay", "gamma": 7}, "final": {"credit": "mine.own"}},
        "backbone": {"name": "x", "kind": "domino", "knobs": {"k": 1}},
        "seed": 0,
    }
    now = compose.compose(["profile=smoke", "backbone=domino"]).resolved
    assert identity.upgraded(now) == now


# --- for a reader ---


def test_the_document_of_the_settings_is_in_step() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    assert page.read_text("utf-8") == reference.document(), "python -m specauf_cli.config.reference writes it"


def test_help_names_every_setting() -> None:
    text = reference.train_help()
    assert all(setting.key in text for setting in settings.settings())
