"""A plan in words: its lines, and counts, bytes and hours as a person reads them."""

from specauf_cli.models.target import taps_of
from specauf_cli.planning.plan import SUPPORT, Plan


def lines(plan: Plan) -> list[str]:
    """The plan but its time, to be printed."""
    config, trainer, lengths = plan.config, plan.config.trainer, plan.lengths
    count, steps = sum(plan.drafter.values()), plan.steps
    parts = ", ".join(f"{name} {number(n)}" for name, n in plan.drafter.items() if n > count / 200)
    origin = (
        f"{trainer.epochs} epochs"
        if trainer.steps is None
        else f"{steps * trainer.batch_size / lengths.examples:.1f} epochs"
    )
    tokens, taps = trainer.batch_size * lengths.mean, taps_of(config.target.taps, plan.sizes.layers)
    own = (
        "; of the original answers: those of the target, made first, are not counted" if config.data.regenerate else ""
    )
    text = [
        f"{config.profile.name}: {config.backbone.title} {config.objective.title} for {config.target.title}, data "
        f"{config.data.name}",
        f"  parameters   drafter {number(count)} trainable ({parts}); target {number(plan.target)} frozen in "
        f"{config.target.dtype}, layers {', '.join(map(str, taps))} tapped",
        f"  data         {lengths.examples:,} examples, {lengths.mean:,.0f} tokens each on average "
        f"({lengths.source}{own})",
        f"  steps        {steps:,} ({origin}), {trainer.batch_size} sequences each: {number(tokens)} tokens and "
        f"{trainer.batch_size * trainer.anchors:,} blocks a step, {number(tokens * steps)} tokens in all",
        f"  work         {number(plan.per_step)}FLOP a step ({share(plan.work)}), {number(plan.per_step * steps)}FLOP "
        "in all",
    ]
    for mode, (work, memory) in plan.heads.items():
        chosen = ", this run's" if mode == plan.head else ""
        assumed = f", {SUPPORT:g} rows a block assumed" if mode == "pruned" else ""
        text.append(f"  head {mode:<8}{number(work)}FLOP a step, {size(memory)} of logits{chosen}{assumed}")
    return [
        *text,
        f"  memory       {size(sum(plan.memory.values()))} on each device ({listed(plan.memory)})",
        f"  disk         {size(sum(plan.disk.values()))} ({listed(plan.disk)}); features are "
        f"{'not stored' if trainer.features == 'online' else f'kept in {trainer.features}'}: all of them are "
        f"{size(plan.features)}",
    ]


def share(parts: dict[str, float]) -> str:
    """``parts`` in per cent of their sum."""
    total = sum(parts.values())
    return ", ".join(f"{k} {v / total:.0%}" for k, v in parts.items())


def listed(parts: dict[str, float]) -> str:
    """Every part that takes any bytes, with them."""
    return ", ".join(f"{k} {size(v)}" for k, v in parts.items() if v)


def number(value: float) -> str:
    """A large count with its prefix and the space that its unit needs: 1.05 G, 512 k."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def size(value: float) -> str:
    """Bytes as GB, MB or TB."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e6:.3g} MB"


def duration(hours: float) -> str:
    """Hours as seconds, minutes, hours or days."""
    if hours * 60 < 2:
        return f"{hours * 3600:.0f} s"
    return (
        f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"
    )
