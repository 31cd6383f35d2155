"""The support of accept-until-fail: the slots that a left-to-right verifier would still look at."""

from jaxtyping import Bool
from torch import Tensor

from specauf_cli.types import BlockStats


def support(stats: BlockStats) -> Bool[Tensor, "N K"]:
    """The AUF support S: valid slots up to and including j* = min{j valid : argmax q_j != y_j}; all valid slots if
    none.

    A slot is in S iff it is valid and every slot before it was predicted correctly (the mask is a contiguous prefix,
    so every slot before a valid one is valid).
    """
    misses_before = (~stats.correct & stats.mask).long().cumsum(dim=1) - (~stats.correct & stats.mask).long()
    return stats.mask & (misses_before == 0)
