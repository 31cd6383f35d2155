"""Prompts dealt out over ranks: what two of them measure together is what one measures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from helpers.trained import together
from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.evaluation import evaluate
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks
from specauf_cli.store.files import read_json, write_json
from specauf_cli.types import Corpus

MakeDrafter = Callable[..., DFlash]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def config(*overrides: str) -> Config:
    return compose.compose(
        [
            "profile=smoke",
            "benchmark=offline_chat",
            "evaluation.prompts=5",
            "evaluation.max_new_tokens=12",
            "evaluation.all_starts=true",
            "evaluation.audit=2",
            *overrides,
        ]
    )


@pytest.mark.parametrize(
    ("mode", "prompts"), [("replay", 3), ("decode", 3), ("replay", 1)], ids=["replay", "decode", "one-prompt"]
)
def test_two_ranks_measure_what_one_does(
    mode: str, prompts: int, target: Target, make_drafter: MakeDrafter, small_corpus: Corpus, tmp_path: Path
) -> None:
    drafter = make_drafter(block_size=16, proposals=15)
    few = replace(small_corpus, conversations=small_corpus.conversations[:20])
    wanted = config(f"evaluation.mode={mode}", f"evaluation.prompts={prompts}")
    wanted = replace(wanted, backbone=drafter.backbone)

    def measure(folder: Path) -> None:
        evaluated = evaluate.evaluate(wanted, target, drafter, few, evaluate.load_benchmarks(wanted), folder / "cache")
        if ranks.FIRST:
            content = TypeAdapter(evaluate.Evaluated).dump_python(evaluated, exclude={"cost"})
            write_json(folder / "evaluated.json", content)

    measure(tmp_path / "one")
    assert together(lambda: measure(tmp_path / "two"), tmp_path / "store") == [0, 0]
    one, two = (read_json(tmp_path / n / "evaluated.json") for n in ("one", "two"))
    assert len(one["benchmarks"]) == 2
    assert one == two
    for path in (tmp_path / "one/cache").glob("*"):
        assert path.read_bytes() == (tmp_path / "two/cache" / path.name).read_bytes()
    assert len(list((tmp_path / "two/cache").iterdir())) == len(list((tmp_path / "one/cache").iterdir())), (
        "no parts left"
    )


def test_what_fits_no_rank_is_said_by_all(
    target: Target, make_drafter: MakeDrafter, small_corpus: Corpus, tmp_path: Path
) -> None:
    drafter, wanted = make_drafter(block_size=16, proposals=15), config("evaluation.max_new_tokens=600")

    def measure() -> None:
        with pytest.raises(InputError, match="no prompt fits the target"):
            evaluate.evaluate(wanted, target, drafter, small_corpus, evaluate.load_benchmarks(wanted), tmp_path)

    assert together(measure, tmp_path / "store") == [0, 0]
