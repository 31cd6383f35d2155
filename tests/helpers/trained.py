"""Training one drafter, and work in several processes, for tests of several files."""

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from specauf_cli.config.schema import Config
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks
from specauf_cli.training import drafter as training
from specauf_cli.training.features import Features
from specauf_cli.training.loop import Interrupted, Running
from specauf_cli.types import Example


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


def together(action: Callable[[], None], store: Path, world: int = 2) -> list[int]:
    """Runs ``action`` in as many forked processes, which find each other through a file; their exit codes."""
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)  # a rank that hangs fails the test
            try:
                ranks.RANK, ranks.WORLD, ranks.FIRST = rank, world, rank == 0
                dist.init_process_group(
                    "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
                )
                action()
                code = 0
            except Interrupted as stop:
                code = stop.exit_code
            except BaseException:
                traceback.print_exc()  # nobody else would: the process ends below
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
