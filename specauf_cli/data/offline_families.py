"""The templates of the procedural corpus: one small function per schema, grouped by family in ``SCHEMAS``.

A schema takes a generator and returns alternating user and assistant texts. Its wording is fixed up to the variants in
``<one|another>``; names, numbers, things and choices are drawn. Answers are computed next to their text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

Turns = tuple[str, ...]
Schema = Callable[[random.Random], Turns]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_WOMEN = _list(
    "Alice,Amara,Anna,Bella,Carla,Chloe,Clara,Daisy,Diana,Elena,Emma,Esther,Fiona,Freya,Gina,Grace,Hana,Hazel,Irene,"
    "Ivy,Jade,Julia,Karin,Kira,Laila,Lena,Lucy,Maria,Maya,Mina,Nadia,Nina,Nora,Olga,Paula,Petra,Rosa,Ruth,Sana,Sara,"
    "Sofia,Tara,Tessa,Uma,Vera,Wendy,Yara,Zoe"
)
_MEN = _list(
    "Adam,Ahmed,Aron,Ben,Boris,Carl,Cesar,Colin,Dan,David,Eli,Emil,Felix,Frank,Gavin,George,Hugo,Ian,Ivan,Jack,James,"
    "Jonas,Karim,Kevin,Leo,Liam,Luis,Marco,Martin,Nils,Noah,Omar,Oscar,Paul,Pedro,Ravi,Robert,Sam,Simon,Tariq,Theo,"
    "Tom,Umar,Victor,Walter,Xavier,Yusuf,Zane"
)
_GOODS = _list(
    "pens,notebooks,rulers,markers,erasers,folders,posters,stickers,candles,mugs,plates,cups,spoons,towels,pillows,"
    "lamps,clocks,baskets,brushes,ribbons,balloons,puzzles,marbles,kites,hats,gloves,socks,shirts,belts,buttons,bulbs,"
    "magnets,batteries,ropes,hooks,boxes,bottles,jars,bells,apples,pears,plums,peaches,lemons,melons,onions,carrots"
)
_BAKED = _list("muffins,cookies,pies,rolls,cakes,waffles,tarts,pancakes,scones,bagels,buns,pretzels")
_CITIES = _list(
    "Lisbon,Oslo,Cairo,Lima,Kyoto,Rome,Delhi,Prague,Dublin,Vienna,Boston,Quito,Nairobi,Seoul,Athens,Perth,Havana,"
    "Bergen,Porto,Madrid,Denver,Hanoi,Tunis,Geneva"
)
_DAYS = _list("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday")
_MONTHS = _list("January,February,March,April,May,June,July,August,September,October,November,December")
_LOOKS = _list("small,large,old,new,bright,heavy,light,round,narrow,clean,dusty,shiny,simple,strange,plain,modern")
_MOODS = _list("gentle,brave,clever,lazy,happy,curious,shy,proud,friendly,hungry,sleepy,lucky,noisy,quiet,young,tired")
_COLORS = _list("red,blue,green,yellow,white,black,brown,purple,gray,orange,pink")
_KINDS = {
    "animal": _list("cat,dog,fox,horse,rabbit,goat,sheep,bear,wolf,mouse,tiger,camel,duck,heron,turtle"),
    "tool": _list("hammer,saw,wrench,drill,shovel,rake,ladder,chisel,axe,screwdriver,level,file"),
    "food": _list("bread,cheese,rice,soup,salad,honey,butter,pasta,yogurt,jam,cereal,stew"),
    "plant": _list("rose,tulip,oak,maple,fern,cactus,daisy,lily,pine,willow,moss,clover"),
    "vehicle": _list("bus,train,truck,bicycle,tram,ferry,van,taxi,scooter,canoe,tractor,wagon"),
    "instrument": _list("piano,violin,drum,flute,trumpet,guitar,harp,cello,banjo,organ,horn,lute"),
}
_WORDS = tuple(word for kind in _KINDS.values() for word in kind)
_THINGS = _list("table,chair,vase,mirror,carpet,cabinet,teapot,blanket,bench,statue,bucket,curtain,desk,box")
_STUFF = _list("wood,glass,stone,metal,clay,paper,cotton,wool,leather,plastic")
_ROOMS = _list("kitchen,garden,library,attic,hall,office,garage,bedroom,workshop,museum,station,cafe")
_GIFTS = _list("book,scarf,painting,teapot,plant,record,sweater,lamp,puzzle,camera,basket,watch,map,bracelet")
_EVENTS = _list("wedding,party,concert,dinner,picnic,festival,match,fair,exhibition,workshop,reunion,parade")
_KIT = _list(
    "a coat,a hat,an umbrella,a map,a camera,a charger,a towel,a passport,a notebook,a sweater,a torch,a toothbrush,"
    "a scarf,a jacket,a raincoat,a water bottle,a first aid kit,a travel pillow,some soap,a swimsuit,a guide book"
)
_PLACES = _list(
    "harbor,castle,museum,market,tower,bridge,park,cathedral,zoo,theater,palace,river,lake,gallery,aquarium,old town,"
    "botanical garden,opera house,beach"
)
_MEALS = _list("soup,rice,pasta,salad,curry,stew,noodles,bread,dumplings,fish,omelets,tacos")
_JOBS = _list("teacher,nurse,farmer,driver,painter,cook,pilot,baker,dentist,writer,singer,tailor")
_COUNT = ("zero", "one", "two", "three", "four", "five", "six")
_ORDINALS = ("first", "second", "third", "fourth")


class _Person(NamedTuple):
    name: str
    he: str
    his: str
    him: str


def _people(r: random.Random, count: int) -> list[_Person]:
    """Different people; a name tells the pronouns."""
    names = r.sample([*_WOMEN, *_MEN], count)
    return [_Person(name, *(("she", "her", "her") if name in _WOMEN else ("he", "his", "him"))) for name in names]


def _say(r: random.Random, text: str) -> str:
    """``text`` with one drawn alternative for each ``<one|another>``."""
    return re.sub(r"<([^<>]*)>", lambda match: r.choice(match[1].split("|")), text)


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{at}. {_up(line)}" for at, line in enumerate(lines, 1))


def _worked(r: random.Random, steps: Sequence[str]) -> str:
    """Steps as lines in one of three styles: after the first line a reader knows how the next ones open."""
    style = r.randrange(3)
    if style == 0:
        return "\n".join(f"Step {at}: {_up(step)}." for at, step in enumerate(steps, 1))
    if style == 1:
        words = ["First", *["Then", "Next"][: len(steps) - 2], "Finally"]
        return "\n".join(f"{word}, {step}." for word, step in zip(words, steps, strict=True))
    return "\n".join(f"{_up(step)}." for step in steps)


# --- word_problems: every operand is in the question or a result of an earlier step; the last result is the answer ---


def _solved(r: random.Random, question: str, answer: int, *steps: str) -> Turns:
    return _say(r, question), f"{_worked(r, steps)}\n#### {answer}"


def _shopping(r: random.Random) -> Turns:
    (who,), (a, b) = _people(r, 1), r.sample(_GOODS, 2)
    n, m, p, q = (r.randint(2, 9) for _ in range(4))
    cost = n * p + m * q
    note = min(bill for bill in (20, 50, 100, 200) if bill > cost)
    return _solved(
        r,
        f"{who.name} <buys|picks up|orders> {n} {a} for {p} dollars each and {m} {b} for {q} dollars each. "
        f"<{_up(who.he)} "
        f"pays with {note} dollars. How much change does {who.he} get?|How much is left if {who.he} had {note} "
        "dollars?>",
        note - cost,
        f"the {a} cost {n} * {p} = {n * p} dollars",
        f"the {b} cost {m} * {q} = {m * q} dollars",
        f"together that is {n * p} + {m * q} = {cost} dollars",
        f"{who.name} has {note} - {cost} = {note - cost} dollars left",
    )


def _sharing(r: random.Random) -> Turns:
    (who, other), item, day = _people(r, 2), r.choice(_GOODS), r.choice(_DAYS)
    friends, each, extra = r.randint(3, 9), r.randint(4, 12), r.randint(2, 9)
    total = friends * each
    return _solved(
        r,
        f"{who.name} has {total - extra} {item} and gets {extra} more from {other.name} on {day}. <{_up(who.he)} "
        "shares all of "
        f"them equally among {friends} friends. How many {item} does each friend get?|{_up(who.he)} puts them into "
        f"{friends} equal groups. How many {item} are in each group?>",
        each,
        f"{who.name} has {total - extra} + {extra} = {total} {item}",
        f"each of the {friends} parts has {total} / {friends} = {each} {item}",
    )


def _distance(r: random.Random) -> Turns:
    (who,), (a, b) = _people(r, 1), r.sample(_CITIES, 2)
    fast, slow, n, m = r.randint(4, 9) * 10, r.randint(2, 6) * 5, r.randint(2, 6), r.randint(2, 5)
    return _solved(
        r,
        f"{who.name} <drives|rides|travels> from {a} to {b}: {n} hours at {fast} miles per hour and {m} hours at "
        f"{slow} "
        f"miles per hour. <How far is it from {a} to {b}?|How many miles is the trip?|How long is the trip in miles?>",
        fast * n + slow * m,
        f"the first part is {fast} * {n} = {fast * n} miles",
        f"the second part is {slow} * {m} = {slow * m} miles",
        f"the whole trip is {fast * n} + {slow * m} = {fast * n + slow * m} miles",
    )


def _ages(r: random.Random) -> Turns:
    a, b, c = (person.name for person in _people(r, 3))
    age, gap, times, later = r.randint(4, 15), r.randint(2, 9), r.randint(2, 4), r.randint(2, 12)
    older, old = age + gap, (age + gap) * times
    return _solved(
        r,
        f"{a} is {age} years old. {b} is {gap} years older than {a}, and {c} is {times} times as old as {b}. "
        f"<How old will {c} be in {later} years?|What will be the age of {c} after {later} years?>",
        old + later,
        f"{b} is {age} + {gap} = {older} years old",
        f"{c} is {older} * {times} = {old} years old",
        f"in {later} years {c} will be {old} + {later} = {old + later} years old",
    )


def _savings(r: random.Random) -> Turns:
    (who,), gift, unit = _people(r, 1), r.choice(_GIFTS), r.choice(("week", "month"))
    start, weekly, weeks, spent = r.randint(10, 60), r.randint(3, 15), r.randint(3, 9), r.randint(2, 9)
    saved, total = weekly * weeks, weekly * weeks + start
    return _solved(
        r,
        f"{who.name} has {start} dollars and saves {weekly} dollars <every|each> {unit} for {weeks} {unit}s. Then "
        f"{who.he} "
        f"spends {spent} dollars on {_a(gift)}. How <much money is|many dollars are> left?",
        total - spent,
        f"{who.name} saves {weekly} * {weeks} = {saved} dollars",
        f"with the first money that makes {saved} + {start} = {total} dollars",
        f"after buying the {gift} there are {total} - {spent} = {total - spent} dollars left",
    )


def _baking(r: random.Random) -> Turns:
    (who,), item = _people(r, 1), r.choice(_BAKED)
    trays, each, eaten, price = r.randint(3, 9), r.randint(4, 12), r.randint(2, 11), r.randint(2, 5)
    made, rest = trays * each, trays * each - eaten
    return _solved(
        r,
        f"{who.name} bakes {trays} trays of {item} with {each} {item} on <each|every> tray. The <family "
        "eats|children eat> "
        f"{eaten} and {who.he} sells the rest for {price} dollars each. How <much|many dollars> does {who.he} earn?",
        rest * price,
        f"{who.name} bakes {trays} * {each} = {made} {item}",
        f"there are {made} - {eaten} = {rest} {item} to sell",
        f"{who.he} earns {rest} * {price} = {rest * price} dollars",
    )


def _wages(r: random.Random) -> Turns:
    (who,), (a, b), room = _people(r, 1), r.sample(_DAYS, 2), _a(r.choice(_ROOMS))
    pay, n, m, bonus = r.randint(8, 25), r.randint(2, 8), r.randint(2, 8), r.randint(5, 30)
    hours, paid = n + m, (n + m) * pay
    return _solved(
        r,
        f"{who.name} <works in|cleans> {room} for {pay} dollars an hour. {_up(who.he)} works {n} hours on {a} and "
        f"{m} hours on {b} "
        f"and gets a bonus of {bonus} dollars. <How much does {who.he} earn?|What is {who.his} total pay?>",
        paid + bonus,
        f"{who.name} works {n} + {m} = {hours} hours",
        f"for the hours {who.he} is paid {hours} * {pay} = {paid} dollars",
        f"with the bonus {who.he} gets {paid} + {bonus} = {paid + bonus} dollars",
    )


# --- algebra: formulas between dollar signs, the answer in \boxed{} ---


def _poly(v: str, *coefficients: int) -> str:
    """Highest power first: ("x", 3, 0, -1) is ``3x^2 - 1``."""
    text = ""
    for power, c in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if c:
            sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
            size = "" if abs(c) == 1 and power else str(abs(c))
            text += sign + size + (v if power else "") + (f"^{power}" if power > 1 else "")
    return text or "0"


def _some(r: random.Random, limit: int) -> int:
    """From ``-limit`` to ``limit``, but not zero."""
    return r.randint(1, limit) * r.choice((-1, 1))


def _in_brackets(n: int) -> str:
    return f"({n})" if n < 0 else str(n)


def _boxed(r: random.Random, question: str, answer: str, *steps: str) -> Turns:
    end = _say(r, f"<The answer is |So the answer is |We get >$\\boxed{{{answer}}}$.")
    return _say(r, question), f"{_worked(r, steps)}\n{end}"


def _solve(equation: str, v: str) -> str:
    return (
        f"<Solve for ${v}$: ${equation}$.|Find the value of ${v}$ such that ${equation}$.|What is ${v}$ if "
        f"${equation}$?"
        f"|Solve the equation ${equation}$.|If ${equation}$, find ${v}$.>"
    )


def _move(n: int) -> str:
    return f"subtract {n} from both sides" if n > 0 else f"add {-n} to both sides"


def _linear(r: random.Random) -> Turns:
    v, a, b, x = r.choice("xyznt"), r.randint(2, 12), _some(r, 20), r.randint(-12, 12)
    return _boxed(
        r,
        _solve(f"{_poly(v, a, b)} = {a * x + b}", v),
        str(x),
        f"{_move(b)}: ${a}{v} = {a * x}$",
        f"divide both sides by {a}: ${v} = {x}$",
    )


def _both_sides(r: random.Random) -> Turns:
    v, x, c, rest, b = r.choice("xyznt"), r.randint(-9, 9), r.randint(2, 6), r.randint(2, 6), _some(r, 15)
    d = rest * x + b
    return _boxed(
        r,
        _solve(f"{_poly(v, c + rest, b)} = {_poly(v, c, d)}", v),
        str(x),
        f"subtract ${c}{v}$ from both sides: ${_poly(v, rest, b)} = {d}$",
        f"{_move(b)}: ${rest}{v} = {d - b}$",
        f"divide both sides by {rest}: ${v} = {x}$",
    )


def _system(r: random.Random) -> Turns:
    k, x, y = r.randint(1, 6), _some(r, 15), _some(r, 15)
    s, d = k * x + y, x - y
    first, second = f"{_poly('x', k, 0)} + y = {s}", f"x - y = {d}"
    return _boxed(
        r,
        f"<Solve the system ${first}$ and ${second}$.|Find $(x, y)$ if ${first}$ and ${second}$."
        f"|Two numbers satisfy ${first}$ and ${second}$. What is $(x, y)$?>",
        f"({x}, {y})",
        f"add the two equations: ${k + 1}x = {s + d}$",
        f"divide both sides by {k + 1}: $x = {x}$",
        f"put this into the second equation: $y = {x} - {_in_brackets(d)} = {y}$",
    )


def _quadratic(r: random.Random) -> Turns:
    v, (p, q) = r.choice("xyznt"), sorted(r.sample([n for n in range(-15, 16) if n], 2))
    equation = f"{_poly(v, 1, -p - q, p * q)} = 0"
    return _boxed(
        r,
        f"<Find all solutions of ${equation}$.|Solve ${equation}$ by factoring.|What are the roots of ${equation}$?"
        f"|For which values of ${v}$ is ${equation}$?>",
        f"{p}, {q}",
        f"we need two numbers with sum {-p - q} and product {p * q}: they are {-p} and {-q}",
        f"factor the left side: $({_poly(v, 1, -p)})({_poly(v, 1, -q)}) = 0$",
        f"each factor can be zero: ${v} = {p}$ or ${v} = {q}$",
    )


def _expand(r: random.Random) -> Turns:
    v, a, c, b, d = r.choice("xyznt"), r.randint(1, 4), r.randint(1, 4), _some(r, 9), _some(r, 9)
    result = _poly(v, a * c, a * d + b * c, b * d)
    return _boxed(
        r,
        f"<Expand|Multiply out|Write as a polynomial:|Find the product> $({_poly(v, a, b)})({_poly(v, c, d)})$.",
        result,
        f"multiply ${_poly(v, a, 0)}$ by the second factor: ${_poly(v, a * c, a * d, 0)}$",
        f"multiply ${b}$ by the second factor: ${_poly(v, b * c, b * d)}$",
        f"add the like terms: ${result}$",
    )


def _simplify(r: random.Random) -> Turns:
    v, a, c, b, d = r.choice("xyznt"), r.randint(2, 7), r.randint(2, 7), _some(r, 9), _some(r, 9)
    result = _poly(v, a + c, a * b + d)
    return _boxed(
        r,
        f"<Simplify|Collect the like terms in|Simplify the expression|Write in simplest form:> "
        f"${a}({_poly(v, 1, b)}) + {_poly(v, c, d)}$.",
        result,
        f"multiply out the bracket: ${a}({_poly(v, 1, b)}) = {_poly(v, a, a * b)}$",
        f"add the terms with ${v}$: ${a}{v} + {c}{v} = {a + c}{v}$",
        f"add the numbers: ${a * b} + {_in_brackets(d)} = {a * b + d}$",
    )


def _evaluate(r: random.Random) -> Turns:
    v, f, a, b, c = r.choice("xyznt"), r.choice("fghpq"), r.randint(1, 5), _some(r, 9), _some(r, 9)
    x = r.choice((-5, -4, -3, -2, 2, 3, 4, 5, 6))
    value, shown = a * x * x + b * x + c, f"{f}({v}) = {_poly(v, a, b, c)}"
    return _boxed(
        r,
        f"<Let ${shown}$. Find ${f}({x})$.|If ${shown}$, what is ${f}({x})$?|Evaluate ${shown}$ at ${v} = {x}$.>",
        str(value),
        f"the square is ${_in_brackets(x)}^2 = {x * x}$",
        f"the first term is ${a} * {x * x} = {a * x * x}$ and the second is ${b} * {_in_brackets(x)} = {b * x}$",
        f"add the terms: ${a * x * x} + {_in_brackets(b * x)} + {_in_brackets(c)} = {value}$",
    )


def _sequence(r: random.Random) -> Turns:
    start, step, n = r.randint(-12, 20), _some(r, 12), r.randint(6, 20)
    shown, value = ", ".join(str(start + step * i) for i in range(4)), start + step * (n - 1)
    return _boxed(
        r,
        f"<Find term {n} of the arithmetic sequence ${shown}$.|An arithmetic sequence begins ${shown}$. What is term "
        f"{n}?"
        f"|The sequence ${shown}$ grows by the same amount each time. What is term {n}?>",
        str(value),
        f"the common difference is ${start + step} - {_in_brackets(start)} = {step}$",
        f"from term 1 to term {n} there are ${n} - 1 = {n - 1}$ differences",
        f"term {n} is ${start} + {n - 1} * {_in_brackets(step)} = {value}$",
    )


# --- code: functions (signature and docstring) and programs (task and assert) ---

_SERIES = [(word + "s", word) for word in _list("number,value,score,price,weight,point,size,age,level,length")]


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
    lead = _say(r, "<Complete|Finish|Implement|Write the body of> <this function|the following Python function>.")
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
    return _completed(r, _say(r, f"{verb}_{xs}"), xs, task, body, data, result)


def _filter_change(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r, 3, 6)
    c, change = _condition(r, x), _change(r, x)
    short, act = f"[{change.code} for {x} in {xs} if {c.code}]", f"result.append({change.code})"
    body = _loop(r, f"for {x} in {xs}", c.code, "result = []", act, short)
    task, result = f"each {x} {change.text} for the {xs} that are {c.text}", [change.of(n) for n in data if c.of(n)]
    return _completed(r, _say(r, f"<change|select|convert|update>_{xs}"), xs, task, body, data, result)


def _first_matching(r: random.Random) -> Turns:
    (xs, x), data = r.choice(_SERIES), _ints(r, 3, 6)
    c, other = _condition(r, x), r.randint(-9, 0)
    body = (f"for {x} in {xs}:", f"    if {c.code}:", f"        return {x}", f"return {other}")
    task, result = f"the first {x} that is {c.text}, or {other}", next((n for n in data if c.of(n)), other)
    return _completed(r, _say(r, f"<first|find|search>_{x}"), xs, task, body, data, result)


def _cap(r: random.Random) -> Turns:
    (xs, x), data, limit = r.choice(_SERIES), _ints(r, 3, 6), r.randint(10, 60)
    change = _change(r, x)
    body = [f"return [min({change.code}, {limit}) for {x} in {xs}]"]
    if r.randrange(3):
        body = ["result = []", f"for {x} in {xs}:", f"    result.append(min({change.code}, {limit}))", "return result"]
    task, result = f"each {x} {change.text}, but at most {limit}", [min(change.of(n), limit) for n in data]
    return _completed(r, _say(r, f"<cap|limit|bound>_{xs}"), xs, task, body, data, result)


def _running(r: random.Random) -> Turns:
    (xs, x), data, start = r.choice(_SERIES), _ints(r, 3, 6), r.randint(0, 30)
    body = (f"total = {start}", "result = []", f"for {x} in {xs}:", f"    total += {x}", "    result.append(total)")
    task, result = f"the running total of the {xs} from {start}", [start + sum(data[: i + 1]) for i in range(len(data))]
    return _completed(r, _say(r, f"<running|growing>_{xs}"), xs, task, (*body, "return result"), data, result)


def _choose_words(r: random.Random) -> Turns:
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
    short = f"[{code} for word in words if {test}]"
    body = _loop(r, "for word in words", test, "result = []", f"result.append({code})", short)
    return _completed(r, _say(r, "<pick|keep|choose>_words"), "words", f"the words {task}{how}", body, data, result)


def _programmed(r: random.Random, head: str, task: str, body: Sequence[str], test: str, note: str) -> Turns:
    """A ``programs`` problem: ``head`` is the name with its parameters, ``test`` the call and result to assert."""
    lead = _say(
        r, "<Write a function to find|Write a Python function to get|Write a function to compute|Write code to find>"
    )
    tail = _say(r, "<Your code should pass:|Your code should pass this test:|It should satisfy:>")
    opening = _say(r, "<||Here is the function.\n|Here is a solution.\n>")
    code = "\n".join(f"    {line}" for line in body)
    return f"{lead} {task}. {tail}\nassert {test}", f"{opening}```python\ndef {head}:\n{code}\n```\n{note}"


def _column(r: random.Random) -> Turns:
    size, (xs, x) = r.randint(2, 3), r.choice(_SERIES)
    at, rows = r.randrange(size), [tuple(r.randint(1, 20) for _ in range(size)) for _ in range(r.randint(2, 4))]
    c, where, cell = _condition(r, f"row[{at}]"), _ORDINALS[at], f"row[{at}]"
    short = f"sum({cell} for row in rows if {c.code})"
    body = _loop(r, "for row in rows", c.code, "total = 0", f"total += {cell}", short)
    name, result = f"sum_{where}_{xs}", sum(row[at] for row in rows if c.of(row[at]))
    task = f"the sum of the {where} {xs} of all tuples, counting only {xs} {c.text}"
    note = f"It adds the {where} {x} of each tuple when it is {c.text}."
    return _programmed(r, f"{name}(rows)", task, body, f"{name}({rows!r}) == {result}", note)


def _dictionary(r: random.Random) -> Turns:
    kind, (xs, x), ordered = r.choice(tuple(_KINDS)), r.choice(_SERIES), r.randrange(2)
    table = {word: r.randint(1, 25) for word in r.sample(_KINDS[kind], r.randint(2, 4))}
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
            (f"the {_ORDINALS[n - 1]} {which} {x} in a list", f"[{n - 1}]", str(ordered[n - 1])),
        )
    )
    body = (f"ordered = sorted({xs}{', reverse=True' if large else ''})", f"return ordered{tail}")
    note = f"The {xs} are sorted from {'large to small' if large else 'small to large'}, so the {which} {x} is first."
    return _programmed(r, f"{which}_{xs}({xs})", task, body, f"{which}_{xs}({data!r}) == {result}", note)


def _letters(r: random.Random) -> Turns:
    text, (a, b) = " ".join(r.sample(_WORDS, r.randint(2, 3))), r.sample("abcdeghilmnoprstu", 2)
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
    head = _say(r, f"{name}_<letters|characters>")
    test, note = f"{head}({text!r}) == {result}", f"The code {note} the letters {a!r} and {b!r} in the text."
    return _programmed(r, f"{head}(text)", task, [f"return text{code}"], test, note)


def _every_other(r: random.Random) -> Turns:
    (xs, x), data, k, start = r.choice(_SERIES), _ints(r, 6, 10), r.randint(2, 4), r.randint(0, 3)
    change = _change(r, x)
    body = ("result = []", f"for {x} in {xs}[{start}::{k}]:", f"    result.append({change.code})", "return result")
    name, result = _say(r, f"<skip|step|stride>_{xs}"), [change.of(n) for n in data[start::k]]
    task = f"every {_ORDINALS[k - 1]} {x} of a list from index {start}, each {change.text}"
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
    item, n, fee, price = r.choice(_GOODS), r.randint(2, 30), r.randint(2, 20), r.randint(2, 12)
    limit, off = r.randint(5, 25), r.randint(2, 9)
    body = (f"cost = count * {price} + {fee}", f"if count > {limit}:", f"    cost -= {off}", "return cost")
    result, rule = n * price + fee - (off if n > limit else 0), f"{off} dollars off for more than {limit} {item}"
    task = f"the cost of {item} at {price} dollars each plus a fee of {fee} dollars, with {rule}"
    note = f"The {item} cost {price} dollars each, the fee is {fee} dollars, and there are {rule}."
    return _programmed(r, f"cost_of_{item}(count)", task, body, f"cost_of_{item}({n}) == {result}", note)


# --- chat: the second request changes what the first answer said ---


def _packing(r: random.Random) -> Turns:
    (city, other), month, days = r.sample(_CITIES, 2), r.choice(_MONTHS), r.randint(2, 14)
    *items, extra = r.sample(_KIT, r.randint(5, 7))
    trip, keep = r.choice(("trip", "visit", "holiday", "journey")), r.randint(2, 3)
    first = (
        f"<I am planning a {trip} to {city} for {days} days in {month}. What should I pack?|Make a packing list for "
        f"a {trip} "
        f"of {days} days to {city} in {month}.|What do I need for a {trip} of {days} days in {city} in {month}?>"
    )
    end = _say(r, f"<Have a good|Enjoy your> {trip} in {month}!")
    answer = f"Here is a packing list for {days} days in {city}:\n{_numbered(items)}\n{end}"
    second, reply = r.choice(
        (
            (
                f"<Please add|I also need|Put> {extra}<| on the list>.",
                f"Here is the list with {extra}:\n{_numbered([*items, extra])}",
            ),
            (
                f"I am going to {other} instead.",
                f"Here is a packing list for {days} days in {other}:\n{_numbered(items)}",
            ),
            (
                f"<My bag is small. |>Keep only the first {_COUNT[keep]} things.",
                f"Here are the first {_COUNT[keep]} things:\n{_numbered(items[:keep])}",
            ),
            (
                "<Write the list as|Turn the list into> <one|a> sentence.",
                f"For {days} days in {city} you should pack {', '.join(items[:-1])} and {items[-1]}.",
            ),
        )
    )
    return _say(r, first), answer, _say(r, second), reply


def _email(r: random.Random) -> Turns:
    (who, me, new), (day, moved, third) = _people(r, 3), r.sample(_DAYS, 3)
    time, topic = (
        r.choice(_list("nine,ten,eleven,noon,two,three,four")),
        f"the {r.choice(_EVENTS)} in {r.choice(_CITIES)}",
    )
    reason = _say(r, "<I have to see a doctor|my train is late|I am still on a trip|my sister visits me|I feel ill>")
    wish = r.choice(("Best wishes", "Kind regards", "Many thanks"))

    def mail(to: str, date: str) -> str:
        start = f"Dear {to},\nwe wanted to meet on {day} to talk about {topic}. Sadly {reason}."
        return f"{start} Could we meet on {date} at {time} instead?\n{wish},\n{me.name}"

    first = (
        f"<Write an email to {who.name} to move our meeting about {topic} from {day} to {moved} at {time}. My name is "
        f"{me.name}.|I am {me.name}. Ask {who.name} in an email to talk about {topic} on {moved} at {time} and not "
        f"on {day}.>"
    )
    short = f"Dear {who.name}, could we move our meeting about {topic} to {moved} at {time}? {wish}, {me.name}"
    answer = f"Dear {me.name},\nthank you for your email. {moved} at {time} is fine for me.\nSee you then,\n{who.name}"
    second, reply = r.choice(
        (
            (f"<Make it|Please write> {third} instead of {moved}.", mail(who.name, third)),
            ("<Make it shorter.|Can you make it shorter?|Rewrite it in one sentence.>", short),
            (f"Send it to {new.name} and not to {who.name}.", mail(new.name, moved)),
            (f"Now write the answer of {who.name}.", answer),
        )
    )
    return _say(r, first), mail(who.name, moved), _say(r, second), reply


def _story(r: random.Random) -> Turns:
    (one, helper, new), (animal, friend) = _people(r, 3), r.sample(_KINDS["animal"], 2)
    hero, thing, place = (
        f"{_a(r.choice(_MOODS))} {animal}",
        f"{r.choice(_COLORS)} {r.choice(_GIFTS)}",
        r.choice(_PLACES),
    )
    first = (
        f"<Tell me a short story|Write a short story|I need a story for my child> about {hero} named {one.name} who "
        f"<looks for|wants to find|lost> {_a(thing)}."
    )

    def tell(name: str) -> str:
        start = f"Once there was {hero} named {name}. One day {name} lost {_a(thing)} near the {place}."
        middle = f"A {friend} named {helper.name} came along and helped."
        return f"{start} {middle} Together they found the {thing}, and {name} was happy again."

    short = f"{_up(hero)} named {one.name} lost {_a(thing)}, and a {friend} named {helper.name} helped to find it."
    events = (f"{one.name} lost {_a(thing)}.", f"A {friend} named {helper.name} helped.", f"They found the {thing}.")
    second, reply = r.choice(
        (
            (f"<Change the name to {new.name}.|Call the {animal} {new.name}.>", tell(new.name)),
            ("<Make it shorter.|Tell it in one sentence.>", short),
            ("<List the events.|Turn the story into a list.>", _numbered(events)),
        )
    )
    return _say(r, first), tell(one.name), _say(r, second), reply


def _day_plan(r: random.Random) -> Turns:
    (who,), city, day = _people(r, 1), r.choice(_CITIES), r.choice(_DAYS)
    (a, b, c), (meal, dish) = r.sample(_PLACES, 3), r.sample(_MEALS, 2)
    first = (
        f"<Plan a {day} in {city} for my friend {who.name}. {_up(who.he)} likes {meal}.|{who.name} spends {day} in "
        f"{city} and "
        f"likes {meal}. Can you plan the day?>"
    )

    def plan(x: str, z: str, food: str) -> str:
        lines = f"Morning: visit the {x}.\nNoon: eat {food} near the {x}.\nAfternoon: walk to the {b}."
        return f"{lines}\nEvening: see the {z}."

    sentence = (
        f"{who.name} visits the {a} in the morning, eats {meal}, walks to the {b} and sees the {c} in the evening."
    )
    second, reply = r.choice(
        (
            (f"<Swap|Please swap> the {a} and the {c}.", f"Here is the new plan:\n{plan(c, a, meal)}"),
            (f"<Sorry, |>{who.he} would rather eat {dish}.", f"Here is the new plan:\n{plan(a, c, dish)}"),
            ("<Write it as one sentence.|Can you say that in one sentence?>", sentence),
            (f"<Where does {who.he} go|What is the plan> in the evening?", f"In the evening {who.name} sees the {c}."),
        )
    )
    return _say(r, first), f"Here is a plan for {who.name} in {city}:\n{plan(a, c, meal)}", _up(_say(r, second)), reply


def _sorting(r: random.Random) -> Turns:
    words = r.sample(_WORDS, r.randint(5, 7))
    ordered, shown = sorted(words), ", ".join(words)
    lead = _say(r, f"<Sort these words in|Put these words into|Write these words in> alphabetical order: {shown}.")
    second, changed = r.choice(
        (
            ("Now in reverse order.", ordered[::-1]),
            ("Now remove the <first word|first one>.", ordered[1:]),
            ("Now remove the <last word|last one>.", ordered[:-1]),
            ("Write them in capitals.", [word.upper() for word in ordered]),
        )
    )
    answer = _say(r, "<Here are the words in order|In alphabetical order|Sorted>:\n")
    return lead, answer + _numbered(ordered), _say(r, second), f"Here is the new list:\n{_numbered(changed)}"


def _advert(r: random.Random) -> Turns:
    look, (color, other), thing, stuff = r.choice(_LOOKS), r.sample(_COLORS, 2), r.choice(_THINGS), r.choice(_STUFF)
    price, cut, room = r.randint(12, 90), r.randint(2, 9), r.choice(_ROOMS)
    first = (
        f"<Write an advert for {_a(look)} {color} {thing} made of {stuff}. It costs {price} dollars.|I want to sell "
        f"{_a(look)} "
        f"{color} {thing} of {stuff} for {price} dollars. Write a text for the shop window.>"
    )

    def advert(dollars: int, shade: str) -> str:
        start = f"For sale: {_a(look)} {shade} {thing}! It is made of {stuff} and looks good in every {room}."
        return f"{start} Take this {shade} {thing} home for only {dollars} dollars."

    short = f"For sale: {_a(look)} {color} {thing} of {stuff}, only {price} dollars."
    second, reply = r.choice(
        (
            (f"<Lower the price by {cut} dollars.|Make it {cut} dollars cheaper.>", advert(price - cut, color)),
            (f"The {thing} is {other} now. Change the text.", advert(price, other)),
            ("<Make it shorter.|That is too long.>", short),
        )
    )
    return _say(r, first), advert(price, color), _say(r, second), reply


# --- instructions: single requests ---

_TIPS = {
    "sleep better": "go to bed early,keep the room dark,avoid coffee,put the phone away,open a window,read a book",
    "save money": "write down what you buy,cook at home,compare prices,wait a day,set a limit for each week",
    "learn a language": "practice every day,listen to songs,find a partner,read short texts,keep a word list",
    "grow tomatoes": "choose a sunny place,water them early,tie them to a stick,remove old leaves,add compost",
    "study for an exam": "make a plan,start with hard topics,take breaks,solve exercises,explain it to a friend",
    "clean the house": "begin with one room,open the windows,dust the shelves,wash the floor last,play music",
    "start running": "buy good shoes,begin slowly,warm up first,drink water,rest every second day,join a group",
}


def _tips(r: random.Random) -> Turns:
    (who,), city, goal, n = _people(r, 1), r.choice(_CITIES), r.choice(tuple(_TIPS)), r.randint(3, 5)
    question = (
        f"<{who.name} from {city} wants to {goal}. Give {who.him} {_COUNT[n]} tips."
        f"|List {_COUNT[n]} tips that help {who.name} from {city} to {goal}."
        f"|My friend {who.name} from {city} would like to {goal}. What are {_COUNT[n]} good tips?>"
    )
    lines = [f"{tip}." for tip in r.sample(_list(_TIPS[goal]), n)]
    return _say(r, question), f"Here are {_COUNT[n]} tips that help {who.name} to {goal}:\n{_numbered(lines)}"


def _letter(r: random.Random) -> Turns:
    (a, b), event, room = _people(r, 2), r.choice(_EVENTS), r.choice(_ROOMS)
    gift = f"{r.choice(_COLORS)} {r.choice(_GIFTS)}"
    question = (
        f"<Write a letter from {a.name} to {b.name} to say thank you for the {gift} at the {event}.|{b.name} gave "
        f"{a.name} "
        f"{_a(gift)} at the {event}. Write a short thank you letter.>"
    )
    answer = (
        f"<Dear|Hello> {b.name},\nthank you very much for the {gift}. It was a lovely surprise at the {event}. Now "
        "it is in my "
        f"{room}, and <I use it every day|I look at it every morning|all my friends like it>. I hope to see you soon.\n"
        f"<Many thanks|Best wishes|Yours>,\n{a.name}"
    )
    return _say(r, question), _say(r, answer)


def _classify(r: random.Random) -> Turns:
    a, b = r.sample(tuple(_KINDS), 2)
    pairs = [(word, kind) for kind in (a, b) for word in r.sample(_KINDS[kind], r.randint(2, 4))]
    pairs = r.sample(pairs, len(pairs))
    groups = [f"{_up(kind)}: {', '.join(word for word, own in pairs if own == kind)}" for kind in (a, b)]
    each = [f"- {word}: {kind}" for word, kind in pairs]
    lead = f"<Classify each word as {a} or {b}|Sort these words into {a} and {b}|Is each word {_a(a)} or {_a(b)}>"
    return _say(r, f"{lead}: {', '.join(word for word, _ in pairs)}."), "\n".join(r.choice((groups, each)))


def _convert(r: random.Random) -> Turns:
    (who,) = _people(r, 1)
    one, big, small, factor, verb = r.choice(
        (
            ("hour", "hours", "minutes", 60, "works for"),
            ("meter", "meters", "centimeters", 100, "measures"),
            ("week", "weeks", "days", 7, "travels for"),
            ("foot", "feet", "inches", 12, "measures"),
            ("minute", "minutes", "seconds", 60, "sings for"),
            ("kilogram", "kilograms", "grams", 1000, "carries"),
            ("day", "days", "hours", 24, "waits for"),
        )
    )
    n, m = r.randint(2, 12), r.randint(2, factor - 1)
    fact, total = f"{who.name} {verb} {n} {big} and {m} {small}", n * factor
    question = f"<{fact}. Convert this to {small}.|Convert to {small}: {fact}.|{fact}. How many {small} is that?>"
    return _say(r, question), (
        f"One {one} has {factor} {small}, so {n} {big} are {n} * {factor} = {total} {small}. "
        f"Adding {m} {small} gives {total} + {m} = {total + m} {small}."
    )


def _summary(r: random.Random) -> Turns:
    (who,), city, job, meal = _people(r, 1), r.choice(_CITIES), r.choice(_JOBS), r.choice(_MEALS)
    age, pet, played = r.randint(21, 79), r.choice(_KINDS["animal"]), r.choice(_KINDS["instrument"])
    facts = f"- name: {who.name}\n- age: {age}\n- city: {city}\n- job: {job}"
    facts += f"\n- pet: {pet}\n- plays: {played}\n- eats: {meal}"
    lead = "<Summarize this fact sheet|Write two sentences about this person|Turn these facts into a short text>"
    answer = (
        f"{who.name} is <a {age} year old {job} from {city} with {_a(pet)}|{age} years old, lives in {city}, works "
        f"as a {job} "
        f"and has {_a(pet)}>. In {who.his} free time {who.he} plays the {played} and likes to eat {meal}."
    )
    return f"{_say(r, lead)}:\n{facts}", _say(r, answer)


def _describe(r: random.Random) -> Turns:
    (owner,), look, (color, other) = _people(r, 1), r.choice(_LOOKS), r.sample(_COLORS, 2)
    thing, stuff, room = r.choice(_THINGS), r.choice(_STUFF), r.choice(_ROOMS)
    question = (
        f"<Describe {_a(look)} {color} {thing} in the {room}.|Write a short description of {_a(look)} {color} "
        f"{thing} that "
        f"stands in the {room}.|In the {room} there is {_a(look)} {color} {thing}. What does it look like?>"
    )
    answer = (
        f"The {color} {thing} in the {room} is {look} and made of {stuff}. It stands near the "
        "<door|window|wall|stairs>, and its "
        f"sides are painted in {other}. It <belongs to|was built by|was a gift from> {owner.name}, and "
        f"<everyone likes it|it is still in use|{owner.he} is proud of it>."
    )
    return _say(r, question), _say(r, answer)


def _rewrite(r: random.Random) -> Turns:
    (who, other), day, (a, b) = _people(r, 2), r.choice(_DAYS), r.sample(_THINGS, 2)
    verbs = (
        "buys bought,finds found,sells sold,brings brought,paints painted,cleans cleaned,hides hid,takes took,sees saw"
    )
    now, past = r.choice(_list(verbs)).split()
    first, second = f"the {r.choice(_LOOKS)} {a} in the {r.choice(_ROOMS)}", f"the {r.choice(_COLORS)} {b}"
    lead = _say(r, "<Rewrite in|Put this text into|Change the verbs to> the past tense")
    return (
        f"{lead}: On {day} {who.name} {now} {first}, and {other.name} {now} {second}. They are happy and go home.",
        f"On {day} {who.name} {past} {first}, and {other.name} {past} {second}. They were happy and went home.",
    )


SCHEMAS: dict[str, tuple[Schema, ...]] = {
    "word_problems": (_shopping, _sharing, _distance, _ages, _savings, _baking, _wages),
    "algebra": (_linear, _both_sides, _system, _quadratic, _expand, _simplify, _evaluate, _sequence),
    "functions": (_aggregate, _filter_change, _first_matching, _cap, _running, _choose_words),
    "programs": (_column, _dictionary, _extremes, _letters, _every_other, _shared, _price),
    "chat": (_packing, _email, _story, _day_plan, _sorting, _advert),
    "instructions": (_tips, _letter, _classify, _convert, _summary, _describe, _rewrite),
}
