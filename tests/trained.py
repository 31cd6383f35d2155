"""Training one drafter, for tests of several files."""

from collections.abc import Sequence
from pathlib import Path

from specauf_cli.models.target import Target
from specauf_cli.schema import Example
from specauf_cli.settings import Config
from specauf_cli.training import drafter as training
from specauf_cli.training.features import Features
from specauf_cli.training.loop import Running


def train_one(
    config: Config,
    target: Target,
    examples: Sequence[Example],
    features: Features,
    folder: Path,
    identity: str = "x",
) -> Running:
    (ended,) = training.train(target, examples, features, [training.Task(config, folder, identity)])
    if ended.failure:
        raise ended.failure
    return ended
