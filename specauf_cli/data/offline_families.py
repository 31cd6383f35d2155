"""The templates of the procedural corpus: one small function per schema, grouped by family in ``SCHEMAS``.

A schema takes a generator and returns alternating user and assistant texts. Its wording is fixed up to a few variants;
names, numbers, things and choices are drawn. Only ``choice``, ``sample``, ``randint`` and ``randrange`` are used, whose
results are the same on every platform. Answers are computed next to their text, never by evaluating it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

Turns = tuple[str, ...]
Schema = Callable[[random.Random], Turns]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_WOMEN = _list(
    "Alice, Amara, Anna, Bella, Carla, Chloe, Clara, Daisy, Diana, Elena, Emma, Esther, Fiona, Freya, Gina, Grace, Hana,"
    "Hazel, Irene, Ivy, Jade, Julia, Karin, Kira, Laila, Lena, Lucy, Maria, Maya, Mina, Nadia, Nina, Nora, Olga, Paula,"
    "Petra, Rosa, Ruth, Sana, Sara, Sofia, Tara, Tessa, Uma, Vera, Wendy, Yara, Zoe"
)
_MEN = _list(
    "Adam, Ahmed, Aron, Ben, Boris, Carl, Cesar, Colin, Dan, David, Eli, Emil, Felix, Frank, Gavin, George, Hugo, Ian,"
    "Ivan, Jack, James, Jonas, Karim, Kevin, Leo, Liam, Luis, Marco, Martin, Nils, Noah, Omar, Oscar, Paul, Pedro, Ravi,"
    "Robert, Sam, Simon, Tariq, Theo, Tom, Umar, Victor, Walter, Xavier, Yusuf, Zane"
)
_GOODS = _list(
    "pens, notebooks, rulers, markers, erasers, folders, posters, stickers, candles, mugs, plates, cups, spoons, towels,"
    "pillows, lamps, clocks, baskets, brushes, ribbons, balloons, puzzles, marbles, kites, scarves, hats, gloves, socks,"
    "shirts, belts, buttons, magnets, batteries, bulbs, ropes, hooks, boxes, bottles, jars, bells"
)
_FRUITS = _list(
    "apples, pears, plums, peaches, lemons, cherries, melons, figs, grapes, mangoes, carrots, onions, beets"
)
_BAKED = _list("muffins, cookies, pies, rolls, cakes, waffles, tarts, pancakes, scones, bagels, buns, pretzels")
_CITIES = _list(
    "Lisbon, Oslo, Cairo, Lima, Kyoto, Rome, Delhi, Prague, Dublin, Vienna, Boston, Quito, Nairobi, Seoul, Athens, Perth,"
    "Havana, Bergen, Porto, Madrid, Denver, Hanoi, Tunis, Geneva"
)
_DAYS = _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
_MONTHS = _list("January, February, March, April, May, June, July, August, September, October, November, December")
_TIMES = _list("eight, nine, ten, eleven, noon, one, two, three, four, five")
_ADJECTIVES = _list(
    "small, large, old, new, bright, quiet, heavy, light, round, narrow, clean, dusty, shiny, simple, strange, gentle,"
    "brave, clever, lazy, happy, curious, shy, proud, friendly, hungry, sleepy, lucky, noisy"
)
_COLORS = _list("red, blue, green, yellow, white, black, brown, purple, gray, silver, golden, pink")
_KINDS = {
    "animal": _list("cat, dog, fox, horse, rabbit, goat, sheep, bear, wolf, mouse, tiger, camel, duck, heron, turtle"),
    "tool": _list("hammer, saw, wrench, drill, shovel, rake, ladder, chisel, pliers, screwdriver, level, file"),
    "food": _list("bread, cheese, rice, soup, salad, honey, butter, pasta, yogurt, jam, cereal, stew"),
    "plant": _list("rose, tulip, oak, maple, fern, cactus, daisy, lily, pine, willow, moss, clover"),
    "vehicle": _list("bus, train, truck, bicycle, tram, ferry, van, taxi, scooter, canoe, tractor, wagon"),
    "instrument": _list("piano, violin, drum, flute, trumpet, guitar, harp, cello, banjo, organ, horn, lute"),
}
_THINGS = _list(
    "table, chair, vase, mirror, carpet, cabinet, teapot, blanket, bench, statue, bucket, curtain, desk, box"
)
_STUFF = _list("wood, glass, stone, metal, clay, paper, cotton, wool, leather, plastic")
_ROOMS = _list("kitchen, garden, library, attic, hall, office, garage, bedroom, workshop, museum, station, cafe")
_GIFTS = _list(
    "book, scarf, painting, teapot, plant, record, sweater, lamp, puzzle, camera, basket, watch, map, bracelet"
)
_EVENTS = _list("birthday, wedding, party, concert, dinner, picnic, exam, move, graduation, holiday, match, festival")
_KIT = _list(
    "coat, hat, umbrella, map, camera, charger, towel, passport, notebook, sweater, torch, toothbrush, scarf, jacket,"
    "raincoat, water bottle, first aid kit, pair of boots, travel pillow, bar of soap, swimsuit, guide book"
)
_PLACES = _list(
    "harbor, castle, museum, market, tower, bridge, park, cathedral, zoo, theater, palace, river, lake, gallery, square,"
    "aquarium, old town, botanical garden, opera house, beach"
)
_MEALS = _list("soup, rice, pasta, salad, curry, stew, noodles, bread, dumplings, fish, omelets, tacos")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


class _Person(NamedTuple):
    name: str
    he: str
    his: str
    him: str


def _person(r: random.Random) -> _Person:
    return (
        _Person(r.choice(_WOMEN), "she", "her", "her")
        if r.randrange(2)
        else _Person(r.choice(_MEN), "he", "his", "him")
    )


def _say(r: random.Random, *variants: str) -> str:
    return r.choice(variants)


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{at}. {_up(line)}" for at, line in enumerate(lines, 1))


def _dashed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _worked(r: random.Random, steps: Sequence[str]) -> str:
    """Steps as lines in one of three styles: once a reader has seen the first line, the next openings are clear."""
    style = r.randrange(3)
    if style == 0:
        return "\n".join(f"Step {at}: {_up(step)}." for at, step in enumerate(steps, 1))
    if style == 1:
        words = ["First", *["Then", "Next"][: len(steps) - 2], *(["Finally"] if len(steps) > 1 else [])]
        return "\n".join(f"{word}, {step}." for word, step in zip(words, steps, strict=True))
    return "\n".join(f"{_up(step)}." for step in steps)


# --- word_problems: every operand is in the question or a result of an earlier step; the last result is the answer ---


def _solved(r: random.Random, question: str, steps: Sequence[str], answer: int) -> Turns:
    return question, f"{_worked(r, steps)}\n#### {answer}"


def _shopping(r: random.Random) -> Turns:
    who, (a, b) = _person(r), r.sample(_GOODS, 2)
    n, m, p, q = r.randint(2, 9), r.randint(2, 9), r.randint(2, 9), r.randint(2, 9)
    cost = n * p + m * q
    note = min(bill for bill in (20, 50, 100, 200) if bill > cost)
    story = _say(
        r,
        f"{who.name} buys {n} {a} for {p} dollars each and {m} {b} for {q} dollars each.",
        f"At the store, {who.name} picks up {n} {a} at {p} dollars each and {m} {b} at {q} dollars each.",
    )
    ask = f"{_up(who.he)} pays with {note} dollars. How much change does {who.he} get?"
    if r.randrange(2):
        ask = f"How many dollars are left if {who.he} had {note} dollars?"
    steps = [
        f"the {a} cost {n} * {p} = {n * p} dollars",
        f"the {b} cost {m} * {q} = {m * q} dollars",
        f"together that is {n * p} + {m * q} = {cost} dollars",
        f"{who.name} has {note} - {cost} = {note - cost} dollars left",
    ]
    return _solved(r, f"{story} {ask}", steps, note - cost)


def _sharing(r: random.Random) -> Turns:
    who, other, item = _person(r), _person(r), r.choice(_GOODS)
    friends, each, extra = r.randint(2, 9), r.randint(2, 12), r.randint(2, 9)
    total = friends * each
    story = _say(
        r,
        f"{who.name} has {total - extra} {item} and gets {extra} more from a neighbor named {other.name}.",
        f"{other.name} gives {extra} {item} to {who.name}, who already has {total - extra} {item}.",
    )
    ask = _say(
        r,
        f"{who.name} shares all the {item} equally among {friends} friends. How many {item} does each friend get?",
        f"If {who.name} puts them into {friends} equal groups, how many {item} are in each group?",
    )
    if total - extra < 2:
        return _sharing(r)
    steps = [
        f"{who.name} has {total - extra} + {extra} = {total} {item}",
        f"each of the {friends} parts holds {total} / {friends} = {each} {item}",
    ]
    return _solved(r, f"{story} {ask}", steps, each)


def _distance(r: random.Random) -> Turns:
    who, (a, b) = _person(r), r.sample(_CITIES, 2)
    speed, hours, slow, late = r.randint(4, 9) * 10, r.randint(2, 6), r.randint(2, 6) * 5, r.randint(2, 5)
    vehicle = r.choice(("drives", "rides", "travels"))
    story = f"{who.name} {vehicle} from {a} to {b}: {hours} hours at {speed} miles per hour and {late} hours at {slow} miles per hour."
    ask = _say(
        r,
        f"How far is it from {a} to {b}?",
        f"How many miles does {who.name} travel?",
        "How long is the trip in miles?",
    )
    first, second = speed * hours, slow * late
    steps = [
        f"the {part} part is {rate} * {time} = {rate * time} miles"
        for part, rate, time in (("first", speed, hours), ("second", slow, late))
    ]
    steps.append(f"the whole trip is {first} + {second} = {first + second} miles")
    return _solved(r, f"{story} {ask}", steps, first + second)


def _ages(r: random.Random) -> Turns:
    a, b, c = _person(r), _person(r), _person(r)
    if len({a.name, b.name, c.name}) < 3:
        return _ages(r)
    age, gap, times, later = r.randint(4, 15), r.randint(2, 9), r.randint(2, 4), r.randint(2, 12)
    story = _say(
        r,
        f"{a.name} is {age} years old. {b.name} is {gap} years older than {a.name}, and {c.name} is {times} times as old as {b.name}.",
        f"{c.name} is {times} times as old as {b.name}. {b.name} is {gap} years older than {a.name}, who is {age} years old.",
    )
    ask = _say(
        r, f"How old will {c.name} be in {later} years?", f"What will be the age of {c.name} after {later} years?"
    )
    old = (age + gap) * times
    steps = [
        f"{b.name} is {age} + {gap} = {age + gap} years old",
        f"{c.name} is {age + gap} * {times} = {old} years old",
        f"in {later} years {c.name} will be {old} + {later} = {old + later} years old",
    ]
    return _solved(r, f"{story} {ask}", steps, old + later)


def _savings(r: random.Random) -> Turns:
    who, gift = _person(r), r.choice(_GIFTS)
    weekly, weeks, spent, start = r.randint(3, 15), r.randint(3, 9), r.randint(2, 9), r.randint(10, 60)
    unit = r.choice(("week", "month"))
    story = _say(
        r,
        f"{who.name} has {start} dollars and saves {weekly} dollars every {unit} for {weeks} {unit}s.",
        f"{who.name} starts with {start} dollars in a jar. Every {unit} for {weeks} {unit}s {who.he} adds {weekly} dollars.",
    )
    ask = (
        f"Then {who.he} spends {spent} dollars on {_a(gift)}. How {_say(r, 'much money is', 'many dollars are')} left?"
    )
    saved = weekly * weeks
    steps = [
        f"{who.name} saves {weekly} * {weeks} = {saved} dollars",
        f"with the first money that makes {saved} + {start} = {saved + start} dollars",
        f"after buying the {gift} there are {saved + start} - {spent} = {saved + start - spent} dollars left",
    ]
    return _solved(r, f"{story} {ask}", steps, saved + start - spent)


def _baking(r: random.Random) -> Turns:
    who, item = _person(r), r.choice(_BAKED)
    trays, each, eaten, price = r.randint(3, 9), r.randint(4, 12), r.randint(2, 11), r.randint(2, 5)
    made = trays * each
    story = _say(
        r,
        f"{who.name} bakes {trays} trays of {item} with {each} {item} on each tray.",
        f"A baker named {who.name} fills {trays} trays. Each tray holds {each} {item}.",
    )
    ask = _say(
        r,
        f"The family eats {eaten} and {who.he} sells the rest for {price} dollars each. How much does {who.he} earn?",
        f"After {eaten} {item} are eaten, the others are sold at {price} dollars each. How many dollars does {who.name} get?",
    )
    steps = [
        f"{who.name} bakes {trays} * {each} = {made} {item}",
        f"there are {made} - {eaten} = {made - eaten} {item} to sell",
        f"{who.he} earns {made - eaten} * {price} = {(made - eaten) * price} dollars",
    ]
    return _solved(r, f"{story} {ask}", steps, (made - eaten) * price)


def _harvest(r: random.Random) -> Turns:
    who, (a, b) = _person(r), r.sample(_FRUITS, 2)
    n, more, times = r.randint(5, 40), r.randint(3, 20), r.randint(2, 4)
    day = r.choice(_DAYS)
    story = _say(
        r,
        f"On {day} {who.name} picks {n} {a} and {times} times as many {b}.",
        f"{who.name} works in the garden on {day}. {_up(who.he)} collects {n} {a} and {times} times as many {b}.",
    )
    ask = _say(
        r,
        f"The next day {who.he} picks {more} more {a}. How many pieces does {who.he} have in all?",
        f"Later {who.he} finds {more} more {a}. What is the total number of {a} and {b}?",
    )
    steps = [
        f"there are {n} * {times} = {n * times} {b}",
        f"there are {n} + {more} = {n + more} {a}",
        f"in all {who.name} has {n * times} + {n + more} = {n * times + n + more} pieces",
    ]
    return _solved(r, f"{story} {ask}", steps, n * times + n + more)


def _reading(r: random.Random) -> Turns:
    who, topic = _person(r), r.choice(_KINDS[r.choice(tuple(_KINDS))])
    per_day, days, rate, left = r.randint(5, 30), r.randint(2, 7), r.randint(4, 20), r.randint(2, 9)
    done, rest = per_day * days, rate * left
    story = _say(
        r,
        f"{who.name} reads a book about {_a(topic)}. The book has {done + rest} pages.",
        f"A book about {_a(topic)} has {done + rest} pages, and {who.name} wants to finish it.",
    )
    ask = _say(
        r,
        f"{_up(who.he)} reads {per_day} pages a day for {days} days. How many days does the rest take at {rate} pages a day?",
        f"After {days} days with {per_day} pages each, {who.he} reads {rate} pages a day. How many more days are needed?",
    )
    steps = [
        f"{who.name} has read {per_day} * {days} = {done} pages",
        f"there are {done + rest} - {done} = {rest} pages left",
        f"the rest takes {rest} / {rate} = {left} days",
    ]
    return _solved(r, f"{story} {ask}", steps, left)


def _wages(r: random.Random) -> Turns:
    who, (a, b), room = _person(r), r.sample(_DAYS, 2), r.choice(_ROOMS)
    pay, n, m, bonus = r.randint(8, 25), r.randint(2, 8), r.randint(2, 8), r.randint(5, 30)
    story = _say(
        r,
        f"{who.name} works in {_a(room)} for {pay} dollars an hour.",
        f"For cleaning {_a(room)}, {who.name} is paid {pay} dollars an hour.",
    )
    ask = f"{_up(who.he)} works {n} hours on {a} and {m} hours on {b} and gets a bonus of {bonus} dollars."
    end = _say(
        r, f"How much does {who.he} earn?", f"What is {who.his} total pay?", f"How many dollars does {who.name} get?"
    )
    steps = [
        f"{who.name} works {n} + {m} = {n + m} hours",
        f"for the hours {who.he} is paid {n + m} * {pay} = {(n + m) * pay} dollars",
        f"with the bonus {who.he} gets {(n + m) * pay} + {bonus} = {(n + m) * pay + bonus} dollars",
    ]
    return _solved(r, f"{story} {ask} {end}", steps, (n + m) * pay + bonus)


# --- algebra: formulas between dollar signs, the answer in \boxed{} ---


def _poly(coefficients: Sequence[int], v: str) -> str:
    """Highest power first: (3, 0, -1) is ``3x^2 - 1``."""
    text = ""
    for power, c in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if c == 0:
            continue
        sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
        size = "" if abs(c) == 1 and power else str(abs(c))
        text += sign + size + (v if power else "") + (f"^{power}" if power > 1 else "")
    return text or "0"


def _some(r: random.Random, low: int, high: int) -> int:
    """Not zero."""
    return r.choice([n for n in range(low, high + 1) if n])


def _brackets(n: int) -> str:
    return f"({n})" if n < 0 else str(n)


def _boxed(r: random.Random, question: str, steps: Sequence[str], answer: str) -> Turns:
    end = _say(
        r, f"The answer is $\\boxed{{{answer}}}$.", f"So the answer is $\\boxed{{{answer}}}$.", f"$\\boxed{{{answer}}}$"
    )
    return question, f"{_worked(r, steps)}\n{end}"


def _solve(r: random.Random, equation: str, v: str) -> str:
    return _say(
        r,
        f"Solve for ${v}$: ${equation}$.",
        f"Find the value of ${v}$ such that ${equation}$.",
        f"What is ${v}$ if ${equation}$?",
        f"Solve the equation ${equation}$.",
        f"If ${equation}$, find ${v}$.",
    )


def _move(n: int) -> str:
    return f"subtract {n} from" if n > 0 else f"add {-n} to"


def _linear(r: random.Random) -> Turns:
    v, a, b, x = r.choice("xyznt"), r.randint(2, 12), _some(r, -20, 20), r.randint(-12, 12)
    c = a * x + b
    steps = [f"{_move(b)} both sides: ${a}{v} = {c - b}$", f"divide both sides by {a}: ${v} = {x}$"]
    return _boxed(r, _solve(r, f"{_poly((a, b), v)} = {c}", v), steps, str(x))


def _both_sides(r: random.Random) -> Turns:
    v, x, c, extra, b = r.choice("xyznt"), r.randint(-9, 9), r.randint(2, 6), r.randint(2, 6), _some(r, -15, 15)
    a = c + extra
    d = a * x + b - c * x
    if d == 0:
        return _both_sides(r)
    steps = [
        f"subtract ${c}{v}$ from both sides: ${_poly((extra, b), v)} = {d}$",
        f"{_move(b)} both sides: ${extra}{v} = {d - b}$",
        f"divide both sides by {extra}: ${v} = {x}$",
    ]
    return _boxed(r, _solve(r, f"{_poly((a, b), v)} = {_poly((c, d), v)}", v), steps, str(x))


def _brackets_equation(r: random.Random) -> Turns:
    v, a, b, x = r.choice("xyznt"), r.randint(2, 9), _some(r, -12, 12), r.randint(-12, 12)
    steps = [
        f"divide both sides by {a}: ${_poly((1, b), v)} = {x + b}$",
        f"{_move(b)} both sides: ${v} = {x}$",
    ]
    return _boxed(r, _solve(r, f"{a}({_poly((1, b), v)}) = {a * (x + b)}", v), steps, str(x))


def _system(r: random.Random) -> Turns:
    k, x, y = r.randint(1, 4), _some(r, -9, 9), _some(r, -9, 9)
    s, d = k * x + y, x - y
    first, second = f"{_poly((k, 0), 'x')} + y = {s}", f"x - y = {d}"
    question = _say(
        r,
        f"Solve the system ${first}$ and ${second}$.",
        f"Find $(x, y)$ if ${first}$ and ${second}$.",
        f"Two numbers satisfy ${first}$ and ${second}$. What is $(x, y)$?",
    )
    steps = [
        f"add the two equations: ${k + 1}x = {s + d}$",
        f"divide both sides by {k + 1}: $x = {x}$",
        f"put this into the second equation: $y = {x} - {_brackets(d)} = {y}$",
    ]
    return _boxed(r, question, steps, f"({x}, {y})")


def _quadratic(r: random.Random) -> Turns:
    v, (p, q) = r.choice("xyznt"), sorted(r.sample([n for n in range(-12, 13) if n], 2))
    equation = f"{_poly((1, -p - q, p * q), v)} = 0"
    question = _say(
        r,
        f"Find all solutions of ${equation}$.",
        f"Solve ${equation}$ by factoring.",
        f"What are the roots of ${equation}$?",
        f"For which values of ${v}$ is ${equation}$?",
    )
    steps = [
        f"we need two numbers with sum {-p - q} and product {p * q}: they are {-p} and {-q}",
        f"factor the left side: $({_poly((1, -p), v)})({_poly((1, -q), v)}) = 0$",
        f"each factor can be zero: ${v} = {p}$ or ${v} = {q}$",
    ]
    return _boxed(r, question, steps, f"{p}, {q}")


def _expand(r: random.Random) -> Turns:
    v, a, c, b, d = r.choice("xyznt"), r.randint(1, 4), r.randint(1, 4), _some(r, -9, 9), _some(r, -9, 9)
    left, right = _poly((a, b), v), _poly((c, d), v)
    result = _poly((a * c, a * d + b * c, b * d), v)
    verb = r.choice(("Expand", "Multiply out", "Write as a polynomial:", "Find the product"))
    steps = [
        f"multiply ${_poly((a, 0), v)}$ by the second factor: ${_poly((a * c, a * d, 0), v)}$",
        f"multiply ${b}$ by the second factor: ${_poly((b * c, b * d), v)}$",
        f"add the like terms: ${result}$",
    ]
    return _boxed(r, f"{verb} $({left})({right})$.", steps, result)


def _simplify(r: random.Random) -> Turns:
    v, a, c, b, d = r.choice("xyznt"), r.randint(2, 7), r.randint(2, 7), _some(r, -9, 9), _some(r, -9, 9)
    e = _some(r, -9, 9)
    source = f"{a}({_poly((1, b), v)}) + {_poly((c, d), v)}" + (f" - {e}" if e > 0 else f" + {-e}")
    result = _poly((a + c, a * b + d - e), v)
    verb = r.choice(("Simplify", "Collect the like terms in", "Simplify the expression", "Write in simplest form:"))
    steps = [
        f"multiply out the bracket: ${a}({_poly((1, b), v)}) = {_poly((a, a * b), v)}$",
        f"add the terms with ${v}$: ${a}{v} + {c}{v} = {a + c}{v}$",
        f"add the numbers: ${a * b} + {_brackets(d)} + {_brackets(-e)} = {a * b + d - e}$",
    ]
    return _boxed(r, f"{verb} ${source}$.", steps, result)


def _evaluate(r: random.Random) -> Turns:
    v, f, a, b, c = r.choice("xyznt"), r.choice("fghpq"), r.randint(1, 5), _some(r, -9, 9), _some(r, -9, 9)
    x = r.choice((-5, -4, -3, -2, 2, 3, 4, 5, 6))
    value, shown = a * x * x + b * x + c, _poly((a, b, c), v)
    question = _say(
        r,
        f"Let ${f}({v}) = {shown}$. Find ${f}({x})$.",
        f"If ${f}({v}) = {shown}$, what is ${f}({x})$?",
        f"Evaluate ${f}({v}) = {shown}$ at ${v} = {x}$.",
    )
    steps = [
        f"the square is ${_brackets(x)}^2 = {x * x}$",
        f"put the values in: ${a} * {x * x} + {_brackets(b)} * {_brackets(x)} + {_brackets(c)}$",
        f"add the terms: ${a * x * x} + {_brackets(b * x)} + {_brackets(c)} = {value}$",
    ]
    return _boxed(r, question, steps, str(value))


def _arithmetic_sequence(r: random.Random) -> Turns:
    start, step, n = r.randint(-12, 20), _some(r, -9, 12), r.randint(6, 20)
    shown = ", ".join(str(start + step * i) for i in range(4))
    question = _say(
        r,
        f"Find term {n} of the arithmetic sequence ${shown}$.",
        f"An arithmetic sequence begins ${shown}$. What is term {n}?",
        f"The sequence ${shown}$ grows by the same amount. What is term {n}?",
    )
    steps = [
        f"the common difference is ${start + step} - {_brackets(start)} = {step}$",
        f"from term 1 to term {n} there are ${n} - 1 = {n - 1}$ differences",
        f"term {n} is ${start} + {n - 1} * {_brackets(step)} = {start + step * (n - 1)}$",
    ]
    return _boxed(r, question, steps, str(start + step * (n - 1)))


# --- code: functions (signature and docstring) and programs (task and assert) ---


class _Code(NamedTuple):
    """One problem: ``task`` completes "Return ..." or "find ...", ``call`` holds the example's arguments."""

    name: str
    parameters: str
    task: str
    body: tuple[str, ...]
    call: str
    result: object
    note: str


class _Condition(NamedTuple):
    text: str
    code: str
    holds: Callable[[int], bool]


_SERIES = (("numbers", "number"), ("values", "value"), ("scores", "score"), ("prices", "price"), ("weights", "weight"))
_SERIES += (("points", "point"), ("sizes", "size"), ("ages", "age"), ("levels", "level"), ("lengths", "length"))
_WORDS = tuple(word for kind in _KINDS.values() for word in kind)


def _condition(r: random.Random, x: str) -> _Condition:
    k, m = r.randint(3, 20), r.randint(2, 9)
    return r.choice(
        (
            _Condition(f"greater than {k}", f"{x} > {k}", lambda n: n > k),
            _Condition(f"less than {k}", f"{x} < {k}", lambda n: n < k),
            _Condition(f"at least {k}", f"{x} >= {k}", lambda n: n >= k),
            _Condition(f"at most {k}", f"{x} <= {k}", lambda n: n <= k),
            _Condition(f"divisible by {m}", f"{x} % {m} == 0", lambda n: n % m == 0),
            _Condition(f"not divisible by {m}", f"{x} % {m} != 0", lambda n: n % m != 0),
            _Condition(f"different from {k}", f"{x} != {k}", lambda n: n != k),
        )
    )


def _change(r: random.Random, x: str) -> tuple[str, str, Callable[[int], int]]:
    k = r.randint(2, 9)
    return r.choice(
        (
            (f"plus {k}", f"{x} + {k}", lambda n: n + k),
            (f"minus {k}", f"{x} - {k}", lambda n: n - k),
            (f"times {k}", f"{x} * {k}", lambda n: n * k),
            (f"modulo {k}", f"{x} % {k}", lambda n: n % k),
            ("squared", f"{x} ** 2", lambda n: n * n),
        )
    )


def _ints(r: random.Random, low: int = 1, high: int = 25) -> list[int]:
    return [r.randint(low, high) for _ in range(r.randint(3, 6))]


def _completed(r: random.Random, code: _Code) -> Turns:
    head = f"def {code.name}({code.parameters}):"
    lead = _say(
        r,
        "Complete this function.",
        "Complete the following Python function.",
        "Write the body of this function.",
        "Finish the function below.",
        "Implement this Python function.",
    )
    example = f"    >>> {code.name}({code.call})\n    {code.result!r}"
    prompt = f'{lead}\n\n{head}\n    """Return {code.task}.\n\n{example}\n    """'
    body = "\n".join(f"    {line}" for line in code.body)
    return prompt, f'```python\n{head}\n    """Return {code.task}."""\n{body}\n```'


def _programmed(r: random.Random, code: _Code) -> Turns:
    lead = _say(
        r,
        "Write a function to find",
        "Write a Python function to get",
        "Write a function to compute",
        "Write code to find",
    )
    tail = _say(r, "Your code should pass:", "Your code should pass this test:", "It should satisfy:")
    body = "\n".join(f"    {line}" for line in code.body)
    opening = _say(r, "", "", "Here is the function.\n", "Here is a solution.\n")
    return (
        f"{lead} {code.task}. {tail}\nassert {code.name}({code.call}) == {code.result!r}",
        f"{opening}```python\ndef {code.name}({code.parameters}):\n{body}\n```\n{code.note}",
    )


def _loop(r: random.Random, over: str, x: str, test: str, start: str, act: str, short: str) -> tuple[str, ...]:
    """The same result as an accumulating loop or as one expression; ``start`` is like ``total = 0``."""
    if r.randrange(3) == 0:
        return (f"return {short}",)
    return start, f"for {x} in {over}:", f"    if {test}:", f"        {act}", f"return {start.split()[0]}"


def _count_matching(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r)
    c = _condition(r, x)
    body = _loop(r, xs, x, c.code, "count = 0", "count += 1", f"sum(1 for {x} in {xs} if {c.code})")
    result = sum(map(c.holds, data))
    name = f"{r.choice(('count', 'number_of', 'tally'))}_{xs}"
    return _completed(r, _Code(name, xs, f"how many {xs} are {c.text}", body, repr(data), result, ""))


def _sum_matching(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r)
    c = _condition(r, x)
    body = _loop(r, xs, x, c.code, "total = 0", f"total += {x}", f"sum({x} for {x} in {xs} if {c.code})")
    result = sum(n for n in data if c.holds(n))
    name = f"{r.choice(('sum', 'add', 'total'))}_{xs}"
    return _completed(r, _Code(name, xs, f"the sum of the {xs} that are {c.text}", body, repr(data), result, ""))


def _filter_change(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r)
    c, (text, code, change) = _condition(r, x), _change(r, x)
    body = _loop(r, xs, x, c.code, "result = []", f"result.append({code})", f"[{code} for {x} in {xs} if {c.code}]")
    result = [change(n) for n in data if c.holds(n)]
    name = f"{r.choice(('change', 'select', 'convert', 'update'))}_{xs}"
    return _completed(
        r, _Code(name, xs, f"each {x} {text} for the {xs} that are {c.text}", body, repr(data), result, "")
    )


def _first_matching(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r)
    c = _condition(r, x)
    body = (f"for {x} in {xs}:", f"    if {c.code}:", f"        return {x}", "return None")
    result = next((n for n in data if c.holds(n)), None)
    if result is None:
        return _first_matching(r)  # an example of None prints nothing at a Python prompt
    name = f"{r.choice(('first', 'find', 'search'))}_{x}"
    return _completed(r, _Code(name, xs, f"the first {x} that is {c.text}, or None", body, repr(data), result, ""))


def _cap(r: random.Random) -> Turns:
    (xs, x), data, limit = r.choice(_SERIES), _ints(r), r.randint(10, 60)
    text, code, change = _change(r, x)
    body: tuple[str, ...] = (f"return [min({code}, {limit}) for {x} in {xs}]",)
    if r.randrange(3):
        body = ("result = []", f"for {x} in {xs}:", f"    result.append(min({code}, {limit}))", "return result")
    result = [min(change(n), limit) for n in data]
    name = f"{r.choice(('cap', 'limit', 'bound'))}_{xs}"
    return _completed(
        r, _Code(name, xs, f"a list with each {x} {text}, but at most {limit}", body, repr(data), result, "")
    )


def _running(r: random.Random) -> Turns:
    (xs, x), data, start = r.choice(_SERIES), _ints(r), r.randint(0, 30)
    body = (f"total = {start}", "result = []", f"for {x} in {xs}:", f"    total += {x}", "    result.append(total)")
    result = [start + sum(data[: at + 1]) for at in range(len(data))]
    name = f"{r.choice(('running', 'cumulative', 'growing'))}_{xs}"
    task = f"the running total of the {xs}, starting from {start}"
    return _completed(r, _Code(name, xs, task, (*body, "return result"), repr(data), result, ""))


def _split(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r)
    c = _condition(r, x)
    body = (
        *(f"yes = [{x} for {x} in {xs} if {c.code}]", f"no = [{x} for {x} in {xs} if not {c.code}]"),
        "return yes, no",
    )
    result = ([n for n in data if c.holds(n)], [n for n in data if not c.holds(n)])
    name = f"{r.choice(('split', 'divide', 'separate'))}_{xs}"
    return _completed(
        r, _Code(name, xs, f"two lists: the {xs} that are {c.text}, and the rest", body, repr(data), result, "")
    )


def _long_words(r: random.Random) -> Turns:
    data, k, letter = r.sample(_WORDS, r.randint(3, 5)), r.randint(3, 6), r.choice("abcdefghlmoprst")
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
    body = _loop(
        r, "words", "word", test, "result = []", f"result.append({code})", f"[{code} for word in words if {test}]"
    )
    name = f"{r.choice(('pick', 'keep', 'choose'))}_words"
    return _completed(r, _Code(name, "words", f"the words {task}{how}", body, repr(data), result, ""))


def _column(r: random.Random) -> Turns:
    size, (xs, x) = r.randint(2, 3), r.choice(_SERIES)
    at, rows = r.randrange(size), [tuple(r.randint(1, 20) for _ in range(size)) for _ in range(r.randint(2, 4))]
    c, where = _condition(r, f"row[{at}]"), _ORDINALS[at]
    start, act = "total = 0", f"total += row[{at}]"
    body = _loop(r, "rows", "row", c.code, start, act, f"sum(row[{at}] for row in rows if {c.code})")
    task = f"the sum of the {where} {xs} of all tuples, counting only {xs} {c.text}"
    result = sum(row[at] for row in rows if c.holds(row[at]))
    note = f"It adds the {where} {x} of each tuple when it is {c.text}."
    return _programmed(r, _Code(f"sum_{where}_{xs}", "rows", task, body, repr(rows), result, note))


def _dictionary(r: random.Random) -> Turns:
    kind = r.choice(tuple(_KINDS))
    table = {word: r.randint(1, 25) for word in r.sample(_KINDS[kind], r.randint(2, 4))}
    (xs, x), order = r.choice(_SERIES), r.randrange(2)
    c = _condition(r, x)
    body = ("result = []", f"for {kind}, {x} in table.items():", f"    if {c.code}:", f"        result.append({kind})")
    task = f"the names of every {kind} whose {x} is {c.text}" + (" in sorted order" if order else "")
    result = [word for word, n in table.items() if c.holds(n)]
    name, note = f"{kind}_{xs}", f"The loop keeps each {kind} whose {x} is {c.text}."
    end = "return sorted(result)" if order else "return result"
    return _programmed(
        r, _Code(name, "table", task, (*body, end), repr(table), sorted(result) if order else result, note)
    )


def _extremes(r: random.Random) -> Turns:
    (xs, x), data, n = r.choice(_SERIES), _ints(r, 1, 60), r.randint(2, 3)
    large = r.randrange(2) == 1
    which = r.choice(("largest", "highest", "biggest") if large else ("smallest", "lowest"))
    ordered = sorted(data, reverse=large)[:n]
    how = f"sorted({xs}, reverse=True)" if large else f"sorted({xs})"
    text, tail, result = r.choice(
        (
            (f"the {n} {which} {xs}", f"return ordered[:{n}]", ordered),
            (f"the sum of the {n} {which} {xs}", f"return sum(ordered[:{n}])", sum(ordered)),
            (f"the {_ORDINALS[n - 1]} {which} {x}", f"return ordered[{n - 1}]", ordered[n - 1]),
        )
    )
    note = (
        f"The {xs} are sorted from {'large to small' if large else 'small to large'}, so the {which} {x} comes first."
    )
    name = f"{which}_{xs}"
    return _programmed(r, _Code(name, xs, f"{text} in a list", (f"ordered = {how}", tail), repr(data), result, note))


def _letters(r: random.Random) -> Turns:
    text = " ".join(r.sample(_WORDS, r.randint(2, 3)))
    a, b = r.sample("abcdeghilmnoprstu", 2)
    name, task, body, result, note = r.choice(
        (
            (
                "count_letters",
                f"how often {a!r} or {b!r} occurs in a text",
                f"text.count({a!r}) + text.count({b!r})",
                text.count(a) + text.count(b),
                f"It counts {a!r} and {b!r} and adds the two counts.",
            ),
            (
                "swap_letter",
                f"a text with every {a!r} replaced by {b!r}",
                f"text.replace({a!r}, {b!r})",
                text.replace(a, b),
                f"The method replace puts {b!r} wherever the text has {a!r}.",
            ),
            (
                "remove_letter",
                f"a text without the letters {a!r} and {b!r}",
                f"text.replace({a!r}, '').replace({b!r}, '')",
                text.replace(a, "").replace(b, ""),
                f"It removes {a!r} and then {b!r} from the text.",
            ),
            (
                "join_parts",
                f"the words of a text joined by {a + '-' + b!r}",
                f"{a + '-' + b!r}.join(text.split())",
                f"{a}-{b}".join(text.split()),
                f"The text is split into words, and {a + '-' + b!r} is put between them.",
            ),
        )
    )
    return _programmed(r, _Code(name, "text", task, (f"return {body}",), repr(text), result, note))


def _every_other(r: random.Random) -> Turns:
    (xs, x), data, k, start = r.choice(_SERIES), [*_ints(r), *_ints(r)], r.randint(2, 4), r.randint(0, 3)
    text, code, change = _change(r, x)
    task = f"every {_ORDINALS[k - 1]} {x} of a list from index {start}, each {text}"
    body = ("result = []", f"for {x} in {xs}[{start}::{k}]:", f"    result.append({code})", "return result")
    result = [change(n) for n in data[start::k]]
    note = f"The slice starts at index {start} and moves {k} places each time."
    return _programmed(
        r, _Code(f"{r.choice(('skip', 'step', 'stride'))}_{xs}", xs, task, body, repr(data), result, note)
    )


def _shared(r: random.Random) -> Turns:
    (xs, x), a, b = r.choice(_SERIES), _ints(r, 1, 12), _ints(r, 1, 12)
    both = r.randrange(2) == 1
    text, test = (
        ("in both lists", "in second") if both else ("in the first list but not in the second", "not in second")
    )
    c = _condition(r, x)
    kept = [n for n in a if (n in b) == both and c.holds(n)]
    task = f"the {xs} that are {text} and {c.text}"
    body = ("result = []", f"for {x} in first:", f"    if {x} {test} and {c.code}:", f"        result.append({x})")
    note = f"Each {x} of the first list is kept when it is {text} and {c.text}."
    name = f"{'common' if both else 'missing'}_{xs}"
    call = f"{a!r}, {b!r}"
    return _programmed(r, _Code(name, "first, second", task, (*body, "return result"), call, kept, note))


def _price(r: random.Random) -> Turns:
    item, n, fee = r.choice(_GOODS), r.randint(2, 30), r.randint(2, 20)
    price, limit, off = r.randint(2, 12), r.randint(5, 25), r.randint(2, 9)
    task = f"the cost of {item} at {price} dollars each plus a fee of {fee}, with {off} dollars off for more than {limit} {item}"
    body = (f"cost = count * {price} + {fee}", f"if count > {limit}:", f"    cost -= {off}", "return cost")
    note = f"The {item} cost {price} dollars each, and {off} dollars are taken off for more than {limit} {item}."
    result = n * price + fee - (off if n > limit else 0)
    return _programmed(r, _Code(f"cost_of_{item}", "count", task, body, str(n), result, note))


# --- chat: the second request changes what the first answer said ---


def _packing(r: random.Random) -> Turns:
    city, other = r.sample(_CITIES, 2)
    month, days, trip = r.choice(_MONTHS), r.randint(2, 14), r.choice(("trip", "visit", "holiday", "journey"))
    items = [_a(item) for item in r.sample(_KIT, r.randint(4, 6))]
    extra = r.choice([item for item in map(_a, _KIT) if item not in items])
    first = _say(
        r,
        f"I am planning a {trip} to {city} for {days} days in {month}. What should I pack?",
        f"Make a packing list for a {trip} to {city}. I will stay {days} days in {month}.",
        f"What do I need for a {trip} of {days} days in {city} in {month}?",
    )
    title = f"Here is a packing list for {days} days in {city}:"
    change = r.randrange(4)
    if change == 0:
        second = _say(
            r, f"Please add {extra} to the list.", f"I also need {extra}. Add it.", f"Put {extra} on the list too."
        )
        reply = f"Here is the list with {extra} added:\n{_numbered([*items, extra])}"
    elif change == 1:
        second = _say(r, f"I am going to {other} instead. Change the list.", f"Sorry, I meant {other}, not {city}.")
        reply = f"Here is a packing list for {days} days in {other}:\n{_numbered(items)}"
    elif change == 2:
        keep = r.randint(2, 3)
        second = f"My bag is small. Keep only the first {_NUMBER_WORDS[keep]} things."
        reply = f"Here are the first {_NUMBER_WORDS[keep]} things:\n{_numbered(items[:keep])}"
    else:
        second = _say(r, "Write the list as one sentence.", "Turn the list into a sentence.")
        reply = f"For {days} days in {city} you should pack {_and(items)}."
    return (
        first,
        f"{title}\n{_numbered(items)}\n{_say(r, 'Have a good', 'Enjoy your')} {trip} in {month}!",
        second,
        reply,
    )


def _meeting_mail(r: random.Random) -> Turns:
    who, me, (day, moved, third), time = _person(r), _person(r), r.sample(_DAYS, 3), r.choice(_TIMES)
    topic = f"the {r.choice(_EVENTS)} in {r.choice(_CITIES)}"
    reason = r.choice(
        ("I have to see a doctor", "my train is late", "I am still on a trip", "my sister visits me", "I feel ill")
    )
    first = _say(
        r,
        f"Write an email to {who.name} to move our meeting about {topic} from {day} to {moved} at {time}. My name is {me.name}.",
        f"I am {me.name}. Ask {who.name} in an email if we can talk about {topic} on {moved} at {time} and not on {day}.",
    )

    def mail(to: str, date: str, wish: str) -> str:
        start = f"Dear {to},\nwe wanted to meet on {day} to talk about {topic}. Sadly {reason}."
        return f"{start} Could we meet on {date} at {time} instead?\n{wish},\n{me.name}"

    wish, new = _say(r, "Best wishes", "Kind regards", "Many thanks"), _person(r).name
    change = r.randrange(4)
    if change == 0:
        second, reply = f"Make it {third} instead of {moved}.", mail(who.name, third, wish)
    elif change == 1:
        second = _say(r, "Make it shorter.", "Can you make it shorter?", "Rewrite it in one sentence.")
        reply = f"Dear {who.name}, could we move our meeting about {topic} to {moved} at {time}? {wish}, {me.name}"
    elif change == 2:
        second, reply = f"Send it to {new} and not to {who.name}.", mail(new, moved, wish)
    else:
        second = f"Now write the answer of {who.name}."
        reply = f"Dear {me.name},\nthank you for your email. {_up(moved)} at {time} is fine for me.\nSee you then,\n{who.name}"
    return first, mail(who.name, moved, wish), second, reply


def _story(r: random.Random) -> Turns:
    name, new, helper = r.choice(_WOMEN), r.choice(_MEN), r.choice(_WOMEN)
    (animal, friend), mood = r.sample(_KINDS["animal"], 2), r.choice(_ADJECTIVES)
    thing, place = f"{r.choice(_COLORS)} {r.choice(_GIFTS)}", r.choice(_PLACES)
    first = _say(
        r,
        f"Tell me a short story about {_a(mood)} {animal} named {name} who looks for a {thing}.",
        f"Write a short story. {_up(_a(mood))} {animal} named {name} wants to find a {thing}.",
        f"I need a story for my child about {name}, {_a(mood)} {animal}, and a {thing}.",
    )

    def tell(hero: str) -> str:
        return (
            f"Once there was {_a(mood)} {animal} named {hero}. One day {hero} lost a {thing} near the {place}. "
            f"A {friend} named {helper} came along and helped. Together they found the {thing}, and {hero} was happy again."
        )

    change = r.randrange(3)
    if change == 0:
        second, reply = _say(r, f"Change the name to {new}.", f"Call the {animal} {new}."), tell(new)
    elif change == 1:
        second = _say(r, "Make it shorter.", "Tell it in one sentence.")
        reply = (
            f"{_up(_a(mood))} {animal} named {name} lost a {thing}, and a {friend} named {helper} helped to find it."
        )
    else:
        second = _say(r, "List the events as points.", "Turn the story into a list.")
        events = [f"{name} lost a {thing}.", f"A {friend} named {helper} helped.", f"They found the {thing}."]
        reply = _numbered(events)
    return first, tell(name), second, reply


def _day_plan(r: random.Random) -> Turns:
    who, city, (a, b, c) = _person(r), r.choice(_CITIES), r.sample(_PLACES, 3)
    meal, dish, day = *r.sample(_MEALS, 2), r.choice(_DAYS)
    first = _say(
        r,
        f"Plan a {day} in {city} for my friend {who.name}. {_up(who.he)} likes {meal}.",
        f"{who.name} spends {day} in {city} and likes {meal}. Can you plan the day?",
    )

    def plan(x: str, y: str, z: str, food: str) -> str:
        lines = [f"Morning: visit the {x}.", f"Noon: eat {food} near the {x}.", f"Afternoon: walk to the {y}."]
        return "\n".join([*lines, f"Evening: see the {z}."])

    change = r.randrange(4)
    if change == 0:
        second, reply = f"Swap the {a} and the {c}.", f"Here is the new plan:\n{plan(c, b, a, meal)}"
    elif change == 1:
        second = f"Sorry, {who.he} would rather eat {dish}."
        reply = f"Here is the new plan:\n{plan(a, b, c, dish)}"
    elif change == 2:
        second = _say(r, "Write it as one sentence.", "Can you say that in one sentence?")
        reply = (
            f"{who.name} visits the {a} in the morning, eats {meal}, walks to the {b} and sees the {c} in the evening."
        )
    else:
        second = _say(r, "What is the plan for the evening?", f"Where does {who.he} go in the evening?")
        reply = f"In the evening {who.name} sees the {c}."
    return first, f"Here is a plan for {who.name} in {city}:\n{plan(a, b, c, meal)}", second, reply


def _sorting(r: random.Random) -> Turns:
    words = r.sample(_WORDS, r.randint(5, 7))
    ordered = sorted(words)
    first = _say(
        r,
        f"Sort these words in alphabetical order: {', '.join(words)}.",
        f"Put these words into alphabetical order: {', '.join(words)}.",
        f"I have these words: {', '.join(words)}. Please sort them.",
    )
    second, changed = r.choice(
        (
            ("Now in reverse order.", ordered[::-1]),
            ("Now remove the first word.", ordered[1:]),
            ("Now remove the last word.", ordered[:-1]),
            ("Write them in capitals.", [word.upper() for word in ordered]),
            ("Which word is the longest?", [max(ordered, key=len)]),
        )
    )
    lead = _say(r, "Here are the words in order", "In alphabetical order", "Sorted")
    if len(changed) == 1:
        return first, f"{lead}:\n{_numbered(ordered)}", second, f"The longest word is {changed[0]}."
    return first, f"{lead}:\n{_numbered(ordered)}", second, f"Here is the new list:\n{_numbered(changed)}"


def _advert(r: random.Random) -> Turns:
    color, thing, stuff, room = r.choice(_COLORS), r.choice(_THINGS), r.choice(_STUFF), r.choice(_ROOMS)
    price, cut, mood = r.randint(12, 90), r.randint(2, 9), r.choice(_ADJECTIVES[:14])
    first = _say(
        r,
        f"Write an advert for {_a(mood)} {color} {thing} made of {stuff}. It costs {price} dollars.",
        f"I want to sell {_a(mood)} {color} {thing} of {stuff} for {price} dollars. Write a text for the shop window.",
    )

    def advert(dollars: int, shade: str) -> str:
        return (
            f"For sale: {_a(mood)} {shade} {thing}! It is made of {stuff} and looks good in every {room}. "
            f"Take this {shade} {thing} home for only {dollars} dollars."
        )

    shade = r.choice(_COLORS)
    change = r.randrange(3)
    if change == 0:
        second = _say(r, f"Lower the price by {cut} dollars.", f"Make it {cut} dollars cheaper.")
        reply = advert(price - cut, color)
    elif change == 1:
        second, reply = f"The {thing} is {shade} now. Change the text.", advert(price, shade)
    else:
        second = _say(r, "Make it shorter.", "That is too long.")
        reply = f"For sale: {_a(mood)} {color} {thing} of {stuff}, only {price} dollars."
    return first, advert(price, color), second, reply


# --- instructions: single requests ---

_TIPS = {
    "sleep better": _list(
        "go to bed at the same time, keep the bedroom dark, avoid coffee in the evening, put the phone away,"
        "open a window, read a calm book"
    ),
    "save money": _list(
        "write down every expense, cook at home, compare prices, wait a day before buying, cancel unused services,"
        "set a limit for each week"
    ),
    "learn a language": _list(
        "practice a little every day, listen to songs, learn words in sentences, speak with a partner, read short texts,"
        "keep a list of new words"
    ),
    "grow tomatoes": _list(
        "choose a sunny place, water the soil in the morning, tie the plants to a stick, remove yellow leaves,"
        "add compost, protect them from frost"
    ),
    "study for an exam": _list(
        "make a plan, start with the hard topics, take short breaks, explain the topic to a friend, solve old exercises,"
        "sleep well before the test"
    ),
    "clean the house": _list(
        "begin with one room, open the windows, dust from top to bottom, sort the things you need, wash the floor last,"
        "play some music"
    ),
    "start running": _list(
        "buy good shoes, begin slowly, warm up first, drink enough water, rest every second day, follow a simple plan"
    ),
}


def _tips(r: random.Random) -> Turns:
    who, goal, n = _person(r), r.choice(tuple(_TIPS)), r.randint(3, 5)
    question = _say(
        r,
        f"{who.name} wants to {goal}. Give {who.him} {_NUMBER_WORDS[n]} tips.",
        f"List {_NUMBER_WORDS[n]} tips that help {who.name} to {goal}.",
        f"My friend {who.name} would like to {goal}. What are {_NUMBER_WORDS[n]} good tips?",
        f"How can {who.name} {goal}? Name {_NUMBER_WORDS[n]} things.",
    )
    lines = [f"{tip}." for tip in r.sample(_TIPS[goal], n)]
    return question, f"Here are {_NUMBER_WORDS[n]} tips that help {who.name} to {goal}:\n{_numbered(lines)}"


def _thanks_letter(r: random.Random) -> Turns:
    a, b, event = _person(r), _person(r), r.choice(_EVENTS)
    gift, room, color = r.choice(_GIFTS), r.choice(_ROOMS), r.choice(_COLORS)
    question = _say(
        r,
        f"Write a letter from {a.name} to {b.name} to say thank you for the {color} {gift} at the {event}.",
        f"{b.name} gave {a.name} a {color} {gift} at the {event}. Write a short thank you letter.",
    )
    start = _say(r, f"Dear {b.name},", f"Hello {b.name},")
    use = _say(r, "I use it every day", "I look at it every morning", "All my friends like it")
    end = _say(r, "Many thanks", "Best wishes", "Yours")
    lines = f"thank you very much for the {color} {gift}. It was a lovely surprise at the {event}."
    return (
        question,
        f"{start}\n{lines} Now it is in my {room}, and {_low(use)}. I hope to see you soon.\n{end},\n{a.name}",
    )


def _low(text: str) -> str:
    return text if text.startswith("I ") else text[:1].lower() + text[1:]


def _classify(r: random.Random) -> Turns:
    a, b = r.sample(tuple(_KINDS), 2)
    words = [(word, a) for word in r.sample(_KINDS[a], r.randint(2, 4))]
    words += [(word, b) for word in r.sample(_KINDS[b], r.randint(2, 4))]
    words = r.sample(words, len(words))
    shown = ", ".join(word for word, _ in words)
    question = _say(
        r,
        f"Classify each word as {a} or {b}: {shown}.",
        f"Sort these words into the groups {a} and {b}: {shown}.",
        f"For each word, say whether it is {_a(a)} or {_a(b)}: {shown}.",
    )
    if r.randrange(2):
        return question, _dashed([f"{word}: {kind}" for word, kind in words])
    groups = [f"{_up(kind)}: {', '.join(word for word, own in words if own == kind)}" for kind in (a, b)]
    return question, "\n".join(groups)


def _convert(r: random.Random) -> Turns:
    who = _person(r)
    big, small, factor, verb = r.choice(
        (
            ("hours", "minutes", 60, "works for"),
            ("meters", "centimeters", 100, "jumps over"),
            ("weeks", "days", 7, "travels for"),
            ("feet", "inches", 12, "measures"),
            ("minutes", "seconds", 60, "sings for"),
            ("kilograms", "grams", 1000, "carries"),
            ("days", "hours", 24, "waits for"),
        )
    )
    n, m = r.randint(2, 12), r.randint(2, factor - 1)
    question = _say(
        r,
        f"{who.name} {verb} {n} {big} and {m} {small}. Convert this to {small}.",
        f"Convert to {small}: {who.name} {verb} {n} {big} and {m} {small}.",
        f"{who.name} {verb} {n} {big} and {m} {small}. How many {small} is that?",
    )
    total = n * factor
    return question, (
        f"There are {factor} {small} in one of the {big}, so {n} {big} are {n} * {factor} = {total} {small}. "
        f"Adding {m} {small} gives {total} + {m} = {total + m} {small}."
    )


def _summary(r: random.Random) -> Turns:
    who, city, job = (
        _person(r),
        r.choice(_CITIES),
        r.choice(_list("teacher, nurse, farmer, driver, painter, cook, pilot")),
    )
    age, pet, tool = r.randint(21, 79), r.choice(_KINDS["animal"]), r.choice(_KINDS["instrument"])
    meal, children = r.choice(_MEALS), r.randint(2, 6)
    lead = _say(
        r, "Summarize this fact sheet", "Write two sentences about this person", "Turn these facts into a short text"
    )
    facts = [f"name: {who.name}", f"age: {age}", f"city: {city}", f"job: {job}", f"children: {children}"]
    facts += [f"pet: {pet}", f"instrument: {tool}", f"food: {meal}"]
    text = _say(
        r,
        f"{who.name} is a {age} year old {job} from {city} with {_NUMBER_WORDS[children]} children and a {pet}.",
        f"{who.name} is {age} years old, lives in {city} and works as a {job}. {_up(who.he)} has "
        f"{_NUMBER_WORDS[children]} children and a {pet}.",
    )
    return (
        f"{lead}:\n{_dashed(facts)}",
        f"{text} In {who.his} free time {who.he} plays the {tool} and likes to eat {meal}.",
    )


def _describe(r: random.Random) -> Turns:
    color, thing, stuff, room = r.choice(_COLORS), r.choice(_THINGS), r.choice(_STUFF), r.choice(_ROOMS)
    mood, other, place = r.choice(_ADJECTIVES[:14]), r.choice(_COLORS), r.choice(("door", "window", "wall", "stairs"))
    question = _say(
        r,
        f"Describe {_a(mood)} {color} {thing} in the {room}.",
        f"Write a short description of {_a(mood)} {color} {thing} that stands in the {room}.",
        f"In the {room} there is {_a(mood)} {color} {thing}. What does it look like?",
    )
    owner = _person(r)
    return question, (
        f"The {color} {thing} in the {room} is {mood} and made of {stuff}. It stands near the {place}, and its sides "
        f"are painted in {other}. {_say(r, 'It belongs to', 'It was built by', 'It was a gift from')} {owner.name}, "
        f"and {_say(r, 'everyone likes it', 'it is still in use', f'{owner.he} is proud of it')}."
    )


def _odd_one_out(r: random.Random) -> Turns:
    a, b = r.sample(tuple(_KINDS), 2)
    words, odd = r.sample(_KINDS[a], r.randint(3, 4)), r.choice(_KINDS[b])
    shown = ", ".join(r.sample([*words, odd], len(words) + 1))
    question = _say(
        r,
        f"Which word does not belong: {shown}?",
        f"Find the odd one out: {shown}.",
        f"One of these words does not fit. Which one? {shown}",
    )
    return question, f"The word {odd} does not belong. {_up(odd)} is {_a(b)}, while {_and(words)} are each {_a(a)}."


def _rewrite(r: random.Random) -> Turns:
    who, other, day = _person(r), _person(r), r.choice(_DAYS)
    now, past = r.choice(
        (("buys", "bought"), ("finds", "found"), ("sells", "sold"), ("brings", "brought"), ("paints", "painted"))
        + (("cleans", "cleaned"), ("repairs", "repaired"), ("hides", "hid"), ("carries", "carried"), ("takes", "took"))
    )
    (a, b), room = r.sample(_THINGS, 2), r.choice(_ROOMS)
    first, second = f"{r.choice(_ADJECTIVES[:14])} {a}", f"{r.choice(_COLORS)} {b}"
    lead = _say(
        r, "Rewrite in the past tense", "Put this text into the past tense", "Change the verbs to the past tense"
    )
    present = f"On {day} {who.name} {now} the {first} in the {room}, and {other.name} {now} the {second}."
    if who.name == other.name:
        return _rewrite(r)
    return (
        f"{lead}: {present} They are happy and go home.",
        f"On {day} {who.name} {past} the {first} in the {room}, and {other.name} {past} the {second}. "
        "They were happy and went home.",
    )


SCHEMAS: dict[str, tuple[Schema, ...]] = {
    "word_problems": (_shopping, _sharing, _distance, _ages, _savings, _baking, _harvest, _reading, _wages),
    "algebra": (
        *(_linear, _both_sides, _brackets_equation, _system, _quadratic),
        *(_expand, _simplify, _evaluate, _arithmetic_sequence),
    ),
    "functions": (
        *(_count_matching, _sum_matching, _filter_change, _first_matching, _cap, _running, _split, _long_words),
    ),
    "programs": (_column, _dictionary, _extremes, _letters, _every_other, _shared, _price),
    "chat": (_packing, _meeting_mail, _story, _day_plan, _sorting, _advert),
    "instructions": (*(_tips, _thanks_letter, _classify, _convert, _summary, _describe, _odd_one_out, _rewrite),),
}
