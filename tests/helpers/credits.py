"""The shipped credits with usual knobs."""

from functools import partial

from specauf_cli.objectives import credits

CREDITS = [
    credits.full_ce,
    partial(credits.decay, gamma=7.0),
    credits.auf,
    partial(credits.auf_decay, gamma=7.0),
    partial(credits.dpace, alpha=0.5),
    partial(credits.dpace_prefix, alpha=0.5),
    partial(credits.dpace_continuation, alpha=0.5),
    credits.chain,
    credits.focal_breaker,
    partial(credits.geometric, beta=0.6),
    credits.breakerless_auf,
    credits.tail,
    partial(credits.floor_auf, eps=0.1),
    credits.shuffled_auf,
    credits.static_auf,
]
"""Those that need nothing but ``stats``."""
