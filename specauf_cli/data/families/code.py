"""Code: functions (signature and docstring) and programs (task and assert)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from specauf_cli.data.families.words import GOODS, KINDS, ORDINALS, WORDS, Schema, Turns, say, split

_SERIES = [(word + "s", word) for word in split("number,value,score,price,weight,point,size,age,level,length")]


class _Rule(NamedTuple):
    """A condition on, or a change of, a number: in words, in code, and what it does."""

    text: str
    code: str
    of: Callable[[int], int]


def _condition(r: random.Random, x: str) -> _Rule:
    k, m = r.randint(3, 20), r.randint(2, 9)
    rules = (
        _Rule(f"greater than {k}", f"{x} > {k}", lambda n: n > k),
        _Rule(f"less than {k}", f"{x} < {k}", lambda n: n < k),
        _Rule(f"at least {k}", f"{x} >= {k}", lambda n: n >= k),
        _Rule(f"at most {k}", f"{x} <= {k}", lambda n: n <= k),
        _Rule(f"divisible by {m}", f"{x} % {m} == 0", lambda n: n % m == 0),
        _Rule(f"not divisible by {m}", f"{x} % {m} != 0", lambda n: n % m != 0),
        _Rule(f"different from {k}", f"{x} != {k}", lambda n: n != k),
    )
    return r.choice(rules)


def _change(r: random.Random, x: str) -> _Rule:
    k = r.randint(2, 9)
    rules = (
        _Rule(f"plus {k}", f"{x} + {k}", lambda n: n + k),
        _Rule(f"minus {k}", f"{x} - {k}", lambda n: n - k),
        _Rule(f"times {k}", f"{x} * {k}", lambda n: n * k),
        _Rule(f"modulo {k}", f"{x} % {k}", lambda n: n % k),
        _Rule("squared", f"{x} ** 2", lambda n: n * n),
    )
    return r.choice(rules)


def _ints(r: random.Random, low: int, high: int) -> list[int]:
    return [r.randint(1, 25) for _ in range(r.randint(low, high))]


def _loop(r: random.Random, head: str, test: str, start: str, act: str, short: str) -> list[str]:
    """The same result as one expression or as a loop over ``head`` that starts from ``start`` like ``total = 0``."""
    if r.randrange(3) == 0:
        return [f"return {short}"]
    return [start, f"{head}:", f"    if {test}:", f"        {act}", f"return {start.split()[0]}"]


def _completed(
    r: random.Random, name: str, xs: str, task: str, body: Sequence[str], data: object, result: object
) -> Turns:
    """A ``functions`` problem: ``task`` completes "Return ..."; ``data`` and ``result`` are the example."""
    lead = say(r, "<Complete|Finish|Implement|Write the body of> <this function|the following Python function>.")
    head = f'def {name}({xs}):\n    """Return {task}.'
    code = "\n".join(f"    {line}" for line in body)
    return (
        f'{lead}\n\n{head}\n\n    >>> {name}({data!r})\n    {result!r}\n    """',
        f'```python\n{head}"""\n{code}\n```',
    )


def _aggregate(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r, 3, 6)
    c = _condition(r, x)
    kept = [n for n in data if c.of(n)]
    verb, task, name, act, short, result = r.choice(
        (
            ("<count|tally>", f"how many {xs} are {c.text}", "count", "count += 1", "1", len(kept)),
            ("<sum|add>", f"the sum of the {xs} that are {c.text}", "total", f"total += {x}", x, sum(kept)),
        )
    )
    body = _loop(r, f"for {x} in {xs}", c.code, f"{name} = 0", act, f"sum({short} for {x} in {xs} if {c.code})")
    return _completed(r, say(r, f"{verb}_{xs}"), xs, task, body, data, result)


def _filter_change(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r, 3, 6)
    c, change = _condition(r, x), _change(r, x)
    short, act = f"[{change.code} for {x} in {xs} if {c.code}]", f"result.append({change.code})"
    body = _loop(r, f"for {x} in {xs}", c.code, "result = []", act, short)
    task, result = f"each {x} {change.text} for the {xs} that are {c.text}", [change.of(n) for n in data if c.of(n)]
    return _completed(r, say(r, f"<change|select|convert|update>_{xs}"), xs, task, body, data, result)


def _first_matching(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r, 3, 6)
    c, other = _condition(r, x), r.randint(-9, 0)
    body = (f"for {x} in {xs}:", f"    if {c.code}:", f"        return {x}", f"return {other}")
    task, result = f"the first {x} that is {c.text}, or {other}", next((n for n in data if c.of(n)), other)
    return _completed(r, say(r, f"<first|find|search>_{x}"), xs, task, body, data, result)


def _cap(r: random.Random) -> Turns:
    (xs, x), data, limit = r.choice(_SERIES), _ints(r, 3, 6), r.randint(10, 60)
    change = _change(r, x)
    body = [f"return [min({change.code}, {limit}) for {x} in {xs}]"]
    if r.randrange(3):
        body = ["result = []", f"for {x} in {xs}:", f"    result.append(min({change.code}, {limit}))", "return result"]
    task, result = f"each {x} {change.text}, but at most {limit}", [min(change.of(n), limit) for n in data]
    return _completed(r, say(r, f"<cap|limit|bound>_{xs}"), xs, task, body, data, result)


def _running(r: random.Random) -> Turns:
    (xs, x), data, start = r.choice(_SERIES), _ints(r, 3, 6), r.randint(0, 30)
    body = (f"total = {start}", "result = []", f"for {x} in {xs}:", f"    total += {x}", "    result.append(total)")
    task, result = f"the running total of the {xs} from {start}", [start + sum(data[: i + 1]) for i in range(len(data))]
    return _completed(r, say(r, f"<running|growing>_{xs}"), xs, task, (*body, "return result"), data, result)


def _choose_words(r: random.Random) -> Turns:
    data, k, letter = r.sample(WORDS, r.randint(3, 5)), r.randint(3, 6), r.choice("abcdefghlmoprst")
    task, test, kept = r.choice(
        (
            (f"longer than {k} letters", f"len(word) > {k}", [w for w in data if len(w) > k]),
            (f"shorter than {k} letters", f"len(word) < {k}", [w for w in data if len(w) < k]),
            (f"starting with {letter!r}", f"word.startswith({letter!r})", [w for w in data if w.startswith(letter)]),
            (f"containing {letter!r}", f"{letter!r} in word", [w for w in data if letter in w]),
        )
    )
    how, code, result = r.choice(
        (
            ("", "word", kept),
            (" in capitals", "word.upper()", [w.upper() for w in kept]),
            (" reversed", "word[::-1]", [w[::-1] for w in kept]),
        )
    )
    short = f"[{code} for word in words if {test}]"
    body = _loop(r, "for word in words", test, "result = []", f"result.append({code})", short)
    return _completed(r, say(r, "<pick|keep|choose>_words"), "words", f"the words {task}{how}", body, data, result)


def _programmed(r: random.Random, head: str, task: str, body: Sequence[str], test: str, note: str) -> Turns:
    """A ``programs`` problem: ``head`` is the name with its parameters, ``test`` the call and result to assert."""
    lead = say(
        r, "<Write a function to find|Write a Python function to get|Write a function to compute|Write code to find>"
    )
    tail = say(r, "<Your code should pass:|Your code should pass this test:|It should satisfy:>")
    opening = say(r, "<||Here is the function.\n|Here is a solution.\n>")
    code = "\n".join(f"    {line}" for line in body)
    return f"{lead} {task}. {tail}\nassert {test}", f"{opening}```python\ndef {head}:\n{code}\n```\n{note}"


def _column(r: random.Random) -> Turns:
    size, (xs, x) = r.randint(2, 3), r.choice(_SERIES)
    at, rows = r.randrange(size), [tuple(r.randint(1, 20) for _ in range(size)) for _ in range(r.randint(2, 4))]
    c, where, cell = _condition(r, f"row[{at}]"), ORDINALS[at], f"row[{at}]"
    short = f"sum({cell} for row in rows if {c.code})"
    body = _loop(r, "for row in rows", c.code, "total = 0", f"total += {cell}", short)
    name, result = f"sum_{where}_{xs}", sum(row[at] for row in rows if c.of(row[at]))
    task = f"the sum of the {where} {xs} of all tuples, counting only {xs} {c.text}"
    note = f"It adds the {where} {x} of each tuple when it is {c.text}."
    return _programmed(r, f"{name}(rows)", task, body, f"{name}({rows!r}) == {result}", note)


def _dictionary(r: random.Random) -> Turns:
    kind, (xs, x), ordered = r.choice(tuple(KINDS)), r.choice(_SERIES), r.randrange(2)
    table = {word: r.randint(1, 25) for word in r.sample(KINDS[kind], r.randint(2, 4))}
    c = _condition(r, x)
    body = ["result = []", f"for {kind}, {x} in table.items():", f"    if {c.code}:", f"        result.append({kind})"]
    body.append("return sorted(result)" if ordered else "return result")
    kept = [word for word, n in table.items() if c.of(n)]
    task = f"the names of every {kind} whose {x} is {c.text}" + (" in sorted order" if ordered else "")
    name, note = f"{kind}_{xs}", f"The loop keeps each {kind} whose {x} is {c.text}."
    test = f"{name}({table!r}) == {sorted(kept) if ordered else kept!r}"
    return _programmed(r, f"{name}(table)", task, body, test, note)


def _extremes(r: random.Random) -> Turns:
    (xs, x), data, n, large = r.choice(_SERIES), _ints(r, 3, 6), r.randint(2, 3), r.choice((True, False))
    which = r.choice(("largest", "highest", "biggest") if large else ("smallest", "lowest"))
    ordered = sorted(data, reverse=large)
    task, tail, result = r.choice(
        (
            (f"the {n} {which} {xs} in a list", f"[:{n}]", repr(ordered[:n])),
            (f"the {ORDINALS[n - 1]} {which} {x} in a list", f"[{n - 1}]", str(ordered[n - 1])),
        )
    )
    body = (f"ordered = sorted({xs}{', reverse=True' if large else ''})", f"return ordered{tail}")
    note = f"The {xs} are sorted from {'large to small' if large else 'small to large'}, so the {which} {x} is first."
    return _programmed(r, f"{which}_{xs}({xs})", task, body, f"{which}_{xs}({data!r}) == {result}", note)


def _letters(r: random.Random) -> Turns:
    text, (a, b) = " ".join(r.sample(WORDS, r.randint(2, 3))), r.sample("abcdeghilmnoprstu", 2)
    count, swapped, removed = text.count(a) + text.count(b), text.replace(a, b), text.replace(a, "").replace(b, "")
    name, task, code, result, note = r.choice(
        (
            (
                "count",
                f"how often {a!r} or {b!r} is in a text",
                f".count({a!r}) + text.count({b!r})",
                repr(count),
                "counts",
            ),
            ("swap", f"a text with {b!r} for every {a!r}", f".replace({a!r}, {b!r})", repr(swapped), "swaps"),
            (
                "remove",
                f"a text without {a!r} and {b!r}",
                f".replace({a!r}, '').replace({b!r}, '')",
                repr(removed),
                "removes",
            ),
        )
    )
    head = say(r, f"{name}_<letters|characters>")
    test, note = f"{head}({text!r}) == {result}", f"The code {note} the letters {a!r} and {b!r} in the text."
    return _programmed(r, f"{head}(text)", task, [f"return text{code}"], test, note)


def _every_other(r: random.Random) -> Turns:
    (xs, x), data, k, start = r.choice(_SERIES), _ints(r, 6, 10), r.randint(2, 4), r.randint(0, 3)
    change = _change(r, x)
    body = ("result = []", f"for {x} in {xs}[{start}::{k}]:", f"    result.append({change.code})", "return result")
    name, result = say(r, f"<skip|step|stride>_{xs}"), [change.of(n) for n in data[start::k]]
    task = f"every {ORDINALS[k - 1]} {x} of a list from index {start}, each {change.text}"
    note = f"The slice starts at index {start} and moves {k} places each time."
    return _programmed(r, f"{name}({xs})", task, body, f"{name}({data!r}) == {result!r}", note)


def _shared(r: random.Random) -> Turns:
    (xs, x), a, b, both = r.choice(_SERIES), _ints(r, 3, 5), _ints(r, 3, 5), r.choice((True, False))
    b = [*b, r.choice(a)]  # so that the lists meet
    text, test = ("in both lists", "in second") if both else ("only in the first list", "not in second")
    c, name = _condition(r, x), f"{'common' if both else 'missing'}_{xs}"
    body = ("result = []", f"for {x} in first:", f"    if {x} {test} and {c.code}:", f"        result.append({x})")
    kept = [n for n in a if (n in b) == both and c.of(n)]
    task, note = f"the {xs} that are {text} and {c.text}", f"Each {x} is kept when it is {text} and {c.text}."
    return _programmed(
        r, f"{name}(first, second)", task, (*body, "return result"), f"{name}({a!r}, {b!r}) == {kept!r}", note
    )


def _price(r: random.Random) -> Turns:
    item, n, fee, price = r.choice(GOODS), r.randint(2, 30), r.randint(2, 20), r.randint(2, 12)
    limit, off = r.randint(5, 25), r.randint(2, 9)
    body = (f"cost = count * {price} + {fee}", f"if count > {limit}:", f"    cost -= {off}", "return cost")
    result, rule = n * price + fee - (off if n > limit else 0), f"{off} dollars off for more than {limit} {item}"
    task = f"the cost of {item} at {price} dollars each plus a fee of {fee} dollars, with {rule}"
    note = f"The {item} cost {price} dollars each, the fee is {fee} dollars, and there are {rule}."
    return _programmed(r, f"cost_of_{item}(count)", task, body, f"cost_of_{item}({n}) == {result}", note)


FUNCTIONS: tuple[Schema, ...] = (_aggregate, _filter_change, _first_matching, _cap, _running, _choose_words)
PROGRAMS: tuple[Schema, ...] = (_column, _dictionary, _extremes, _letters, _every_other, _shared, _price)
