"""Training conversations whose answers the target wrote itself, turn after turn (field practice; the paper uses the
originals)."""

from collections.abc import Sequence
from pathlib import Path

from specauf_cli.config.schema import EvaluationConfig
from specauf_cli.data.conversations import content_hash
from specauf_cli.data.spool import CONVERSATIONS, Spool
from specauf_cli.errors import InputError
from specauf_cli.evaluation import trajectories
from specauf_cli.models.target import Target
from specauf_cli.types import Conversation, Corpus, Message, Prompt, PromptSet, Trajectory

CHUNK = 512
"""Conversations that are answered together and then cached: an interrupted run continues after the last of them."""


def regenerate(target: Target, corpus: Corpus, count: int, settings: EvaluationConfig, cache: Path) -> Corpus:
    """The first ``count`` conversations of ``corpus`` with the target's greedy answers; made once and kept in
    ``cache``.

    A conversation is cut before an answer that does not end within ``settings.max_new_tokens``: that answer would
    teach an end of turn that the target never wrote. Errors: InputError when ``corpus`` holds fewer, or no conversation
    is left.
    """
    check_count(count, corpus)
    kept = Spool(CONVERSATIONS, f"{corpus.name}, answered by the target")
    for begin in range(0, count, CHUNK):
        part = corpus.conversations[begin : min(begin + CHUNK, count)]
        answers = _answers(target, part, f"{corpus.name}-{begin}", settings, cache)
        for original in part:
            answered = _conversation(target, original, answers.get(original.id, []))
            if answered is not None:
                kept.append(answered)
    conversations = kept.rows()
    if not conversations:
        raise InputError(
            f"data.regenerate={count}: the target ended none of its answers within "
            f"evaluation.max_new_tokens={settings.max_new_tokens}, or no question fits with them into its context of "
            f"{target.context_length} tokens"
        )
    dropped = {**corpus.dropped, "no answer of the target's that ends": count - len(conversations)}
    return Corpus(f"{corpus.name}, answered by the target", conversations, dropped, content_hash(conversations))


def check_count(count: int, corpus: Corpus) -> None:
    """Errors: InputError when ``corpus`` holds fewer conversations than are to be answered."""
    if count > len(corpus.conversations):
        raise InputError(
            f"data.regenerate={count} is more than the {len(corpus.conversations)} training conversations of "
            f"{corpus.name}"
        )


def _answers(
    target: Target, part: Sequence[Conversation], name: str, settings: EvaluationConfig, cache: Path
) -> dict[str, list[Trajectory]]:
    """The target's answers by conversation, in the order of its turns; those led by a system turn are left out."""
    plain = [c for c in part if c.messages[0].role != "system"]
    prompts = tuple(Prompt(c.id, tuple(m.content for m in c.messages if m.role == "user")) for c in plain)
    if not prompts:
        return {}
    asked = PromptSet(name, "training conversations", prompts, len(prompts), content_hash(plain), name)
    generated = trajectories.get(
        target,
        asked,
        temperature=0.0,
        seed=0,
        max_new_tokens=settings.max_new_tokens,
        tail=0,
        batch_size=settings.batch_size,
        cache=cache,
        shared=True,
        empty=True,
    )
    answers: dict[str, list[Trajectory]] = {}
    for trajectory in generated.trajectories:
        answers.setdefault(trajectory.prompt_id, []).append(trajectory)
    return answers


def _conversation(target: Target, original: Conversation, answers: list[Trajectory]) -> Conversation | None:
    """``original`` with the target's answers, up to the first one that did not end."""
    questions = [m for m in original.messages if m.role == "user"]
    messages: list[Message] = []
    for question, answer in zip(questions, answers, strict=False):
        if not answer.ended:
            break
        messages += [question, Message("assistant", target.chat.text(answer.tokens[: answer.length]))]
    return Conversation(original.id, tuple(messages), original.source) if messages else None
