"""Prompt lookup is vLLM's rule, its replay is live decoding, and repetition is counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.lookup import LookupIndex, LookupRule, plain_traces, repeated_grams, replay_lookup
from specauf_cli.types import Trajectory

words = st.lists(st.integers(0, 3), min_size=1, max_size=30)
rules = st.builds(
    lambda shortest, more, proposals: LookupRule(shortest + more, shortest, proposals),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 6),
)


def naive(rule: LookupRule, tokens: Sequence[int]) -> list[int]:
    """Every n from the longest, every place from the left."""
    for n in range(rule.longest, rule.shortest - 1, -1):
        for begin in range(len(tokens) - n):
            if list(tokens[begin : begin + n]) == list(tokens[len(tokens) - n :]):
                return list(tokens[begin + n : begin + n + rule.proposals])
    return []


@given(rules, words)
def test_a_proposal_follows_the_earliest_occurrence_of_the_longest_gram(rule: LookupRule, tokens: list[int]) -> None:
    index = LookupIndex(rule)
    for end in range(1, len(tokens) + 1):
        index.extend(tokens[end - 1 : end])
        assert index.propose() == naive(rule, tokens[:end])


@given(rules, words, words)
def test_the_replay_is_the_naive_loop(rule: LookupRule, prompt: list[int], answer: list[int]) -> None:
    stream = [*answer, *[0] * rule.proposals]
    (trace,) = replay_lookup(rule, [Trajectory("p", 0, tuple(prompt), tuple(stream), len(answer), ended=True)])
    emitted, accepted = 1, []
    while emitted < len(answer):
        proposal = naive(rule, [*prompt, *stream[:emitted]])
        count = 0
        while count < len(proposal) and proposal[count] == stream[emitted + count]:
            count += 1
        accepted.append(count)
        emitted += count + 1
    assert trace.accepted == tuple(accepted)
    assert (trace.tokens, trace.proposed, trace.ended) == (len(answer), rule.proposals, True)


def test_fewer_tokens_than_asked_for_and_none() -> None:
    index = LookupIndex(LookupRule(3, 2, 4))
    index.extend([1, 2, 3, 4, 2, 3])
    assert index.propose() == [4, 2, 3]
    index.extend([9])
    assert index.propose() == []


def test_plain_decoding_has_one_token_a_round() -> None:
    traces = replay_lookup(LookupRule(2, 1, 3), [Trajectory("p", 0, (1, 2), (1, 2, 1, 2, 0, 0, 0), 4, ended=False)])
    (plain,) = plain_traces(traces)
    assert (plain.accepted, plain.proposed, plain.tokens) == ((0, 0, 0), 0, 4)
    assert tau.mean([plain], "pooled") == tau.mean([plain], "eos_truncated") == 1


@pytest.mark.parametrize(
    ("answer", "expected"), [([1, 2, 3], (0, 0)), ([1, 2, 3, 4], (0, 1)), ([1] * 8, (4, 5)), ([1, 2, 3, 4] * 2, (1, 5))]
)
def test_repeated_grams(answer: list[int], expected: tuple[int, int]) -> None:
    assert repeated_grams(answer) == expected


@pytest.mark.parametrize("sizes", [(2, 3, 1), (2, 0, 1), (3, 2, 0)])
def test_an_impossible_rule_is_an_input_error(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="1 <= shortest <= longest"):
        LookupRule(*sizes)
