"""Block-mask accuracy on held-out conversations: how many slots of random blocks a drafter predicts correctly."""

import torch

from specauf_cli.data.chat import encode
from specauf_cli.models.blocks import collate, labels_and_mask, previous_tokens, sample_anchors, valid_anchors
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives.loss import block_stats
from specauf_cli.objectives.support import support
from specauf_cli.store.records import Heldout
from specauf_cli.types import Corpus


@torch.no_grad()
def heldout_blocks(
    target: Target, drafter: DFlash, corpus: Corpus, *, max_length: int, anchors: int, seed: int, batch_size: int
) -> Heldout:
    """Block-mask sums on held-out conversations: how many slots were supervised and how many predicted right.

    ``valid`` and ``correct`` are per slot; ``reached`` and ``passed`` too, over the blocks whose earlier slots are all
    right (their ratio is alpha_k as training sees it, on the data's own tokens); ``ids``, ``id_valid`` and
    ``id_correct`` the same sums per example, for error bars. Anchors depend on ``seed`` and the data only, so every
    drafter predicts the same blocks, in the slots that it may propose. Of several branches the last one, which drafts,
    is measured; it reads the conversation's own tokens, as in training.
    """
    slots = drafter.backbone.proposals
    examples, _ = encode(target.chat, corpus, max_length=max_length)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    valid = torch.zeros(slots, dtype=torch.long)
    correct = torch.zeros(slots, dtype=torch.long)
    reached, passed = torch.zeros_like(valid), torch.zeros_like(valid)
    by_id: dict[int, tuple[int, int]] = {}
    for begin in range(0, len(order), batch_size):
        batch = collate(examples, order[begin : begin + batch_size], target.chat.pad_id)
        drawn = []
        for i in batch.index:  # a generator per conversation: the result must not depend on its batch
            own = torch.tensor([examples[i].supervised])
            drawn.append(sample_anchors(valid_anchors(own), anchors, torch.Generator().manual_seed((seed << 32) + i)))
        starts, real = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        labels, mask = labels_and_mask(batch.tokens, batch.supervised, starts, real, slots)
        tokens, starts = batch.tokens.to(target.device), starts.to(target.device)
        context = drafter.context(target.features(tokens))
        hidden = drafter.hidden(target, context, tokens.gather(1, starts), starts)[:, :, :slots]
        previous = previous_tokens(tokens, starts, slots)
        logits = drafter.logits(target, hidden.flatten(0, 1), previous.flatten(0, 1))[drafter.branches[-1]]
        stats, _ = block_stats(logits, labels.flatten(0, 1).to(target.device), mask.flatten(0, 1).to(target.device))
        valid += stats.mask.sum(dim=0).cpu()
        correct += stats.correct.sum(dim=0).cpu()
        alive = support(stats)
        reached += alive.sum(dim=0).cpu()
        passed += (alive & stats.correct).sum(dim=0).cpu()
        shape = (len(batch.index), -1)
        sums = zip(
            stats.mask.view(shape).sum(dim=1).tolist(), stats.correct.view(shape).sum(dim=1).tolist(), strict=True
        )
        by_id.update(zip(batch.index, sums, strict=True))
    rows = sorted(by_id)
    return Heldout(
        valid=tuple(valid.tolist()),
        correct=tuple(correct.tolist()),
        reached=tuple(reached.tolist()),
        passed=tuple(passed.tolist()),
        ids=tuple(examples[i].id for i in rows),
        id_valid=tuple(by_id[i][0] for i in rows),
        id_correct=tuple(by_id[i][1] for i in rows),
    )
