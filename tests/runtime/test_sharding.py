"""Sharded layers through a whole session: what a rank holds, what is refused, and the drafter that comes out.

That training gives the numbers of one rank is tested in test_ranks.py.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.trained import together
from specauf_cli.config import compose
from specauf_cli.errors import InputError
from specauf_cli.runtime import ranks, sharding
from specauf_cli.session import open_session

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
QUICK = ["profile=smoke", "objective=auf", "target.pretrain.steps=4", "trainer.steps=4", "trainer.micro_batch=2"]


def test_a_session_with_both_sharded_trains_the_same_drafter_and_refuses_to_measure(tmp_path: Path) -> None:
    def train(name: str, *more: str) -> Path:
        words = [*QUICK, *more, f"runs={tmp_path / name}"]
        config = compose.compose(words)
        session = open_session(config)
        folder = session.train(config, words)
        if more:
            parameters = [p for layer in session.target._layers for p in layer.parameters()]
            held = sum(p.to_local().numel() for p in parameters if sharding.is_sharded(p))
            assert held == sum(p.numel() for p in parameters) / 2
            with pytest.raises(InputError, match=r"trainer\.shard=both is for training"):
                session.measure(config, folder, words)
        return folder

    alone = train("one")
    assert together(lambda: train("two", "trainer.shard=both") and None, tmp_path / "store") == [0, 0]
    weights = load_file(alone / "drafter/model.safetensors")
    shared = load_file(tmp_path / "two" / alone.name / "drafter/model.safetensors")  # the same run id
    assert weights.keys() == shared.keys()
    for name, tensor in weights.items():
        assert (tensor - shared[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize(
    ("world", "words", "says"),
    [
        (1, ["trainer.shard=target"], r"trainer\.shard=target spreads layers over several ranks: torchrun"),
        (2, ["trainer.shard=drafter", "trainer.eval_every=10"], r"trainer\.eval_every=10 measures in the first rank"),
        (2, ["trainer.shard=both", "trainer.features=disk"], r"trainer\.features=disk and .*needs online"),
        (2, ["trainer.shard=target", "data.regenerate=8"], r"data\.regenerate=8 and .*needs null"),
        (2, ["trainer.shard=target", "target.device_map=auto"], r"target\.device_map=auto and .*needs null"),
        (2, ["trainer.shard=drafter", "backbone=medusa"], "backbone=medusa has no draft layers"),
    ],
)
def test_what_ranks_could_not_do_together_is_refused(
    world: int, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "WORLD", world)
    with pytest.raises(InputError, match=says):
        open_session(compose.compose(["profile=smoke", "trainer.log_every=10", f"runs={tmp_path}", *words]))
    assert not list(tmp_path.iterdir())


def test_gradients_are_clipped_by_their_common_norm(tmp_path: Path) -> None:
    def clip() -> None:
        layer, plain = torch.nn.Linear(6, 4), torch.nn.Parameter(torch.ones(3))
        expected = [torch.arange(24.0).view(4, 6), torch.arange(4.0), torch.ones(3)]
        sharding.shard([layer], "cpu")
        parameters = [layer.weight, layer.bias, plain]
        for parameter, gradient in zip(parameters, expected, strict=True):
            parameter.grad = sharding.part(gradient.clone(), parameter)
        norm = torch.cat([g.flatten() for g in expected]).norm()
        assert sharding.clip(parameters, 2.0).item() == pytest.approx(norm.item())
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(sharding.whole(parameter.grad), gradient * 2 / norm)
        assert sharding.clip(parameters, 5.0).item() == pytest.approx(2.0), "already below the limit: not scaled up"

    assert together(clip, tmp_path / "store") == [0, 0]
