"""Word problems: every operand is in the question or a result of an earlier step; the last result is the answer."""

from __future__ import annotations

import random

from specauf_cli.data.families.words import (
    BAKED,
    CITIES,
    DAYS,
    GIFTS,
    GOODS,
    ROOMS,
    Schema,
    Turns,
    an,
    people,
    say,
    up,
    worked,
)


def _solved(r: random.Random, question: str, answer: int, *steps: str) -> Turns:
    return say(r, question), f"{worked(r, steps)}\n#### {answer}"


def _shopping(r: random.Random) -> Turns:
    (who,), (a, b) = people(r, 1), r.sample(GOODS, 2)
    n, m, p, q = (r.randint(2, 9) for _ in range(4))
    cost = n * p + m * q
    note = min(bill for bill in (20, 50, 100, 200) if bill > cost)
    return _solved(
        r,
        f"{who.name} <buys|picks up|orders> {n} {a} for {p} dollars each and {m} {b} for {q} dollars each. "
        f"<{up(who.he)} "
        f"pays with {note} dollars. How much change does {who.he} get?|How much is left if {who.he} had {note} "
        "dollars?>",
        note - cost,
        f"the {a} cost {n} * {p} = {n * p} dollars",
        f"the {b} cost {m} * {q} = {m * q} dollars",
        f"together that is {n * p} + {m * q} = {cost} dollars",
        f"{who.name} has {note} - {cost} = {note - cost} dollars left",
    )


def _sharing(r: random.Random) -> Turns:
    (who, other), item, day = people(r, 2), r.choice(GOODS), r.choice(DAYS)
    friends, each, extra = r.randint(3, 9), r.randint(4, 12), r.randint(2, 9)
    total = friends * each
    return _solved(
        r,
        f"{who.name} has {total - extra} {item} and gets {extra} more from {other.name} on {day}. <{up(who.he)} "
        "shares all of "
        f"them equally among {friends} friends. How many {item} does each friend get?|{up(who.he)} puts them into "
        f"{friends} equal groups. How many {item} are in each group?>",
        each,
        f"{who.name} has {total - extra} + {extra} = {total} {item}",
        f"each of the {friends} parts has {total} / {friends} = {each} {item}",
    )


def _distance(r: random.Random) -> Turns:
    (who,), (a, b) = people(r, 1), r.sample(CITIES, 2)
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
    a, b, c = (person.name for person in people(r, 3))
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
    (who,), gift, unit = people(r, 1), r.choice(GIFTS), r.choice(("week", "month"))
    start, weekly, weeks, spent = r.randint(10, 60), r.randint(3, 15), r.randint(3, 9), r.randint(2, 9)
    saved, total = weekly * weeks, weekly * weeks + start
    return _solved(
        r,
        f"{who.name} has {start} dollars and saves {weekly} dollars <every|each> {unit} for {weeks} {unit}s. Then "
        f"{who.he} "
        f"spends {spent} dollars on {an(gift)}. How <much money is|many dollars are> left?",
        total - spent,
        f"{who.name} saves {weekly} * {weeks} = {saved} dollars",
        f"with the first money that makes {saved} + {start} = {total} dollars",
        f"after buying the {gift} there are {total} - {spent} = {total - spent} dollars left",
    )


def _baking(r: random.Random) -> Turns:
    (who,), item = people(r, 1), r.choice(BAKED)
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
    (who,), (a, b), room = people(r, 1), r.sample(DAYS, 2), an(r.choice(ROOMS))
    pay, n, m, bonus = r.randint(8, 25), r.randint(2, 8), r.randint(2, 8), r.randint(5, 30)
    hours, paid = n + m, (n + m) * pay
    return _solved(
        r,
        f"{who.name} <works in|cleans> {room} for {pay} dollars an hour. {up(who.he)} works {n} hours on {a} and "
        f"{m} hours on {b} "
        f"and gets a bonus of {bonus} dollars. <How much does {who.he} earn?|What is {who.his} total pay?>",
        paid + bonus,
        f"{who.name} works {n} + {m} = {hours} hours",
        f"for the hours {who.he} is paid {hours} * {pay} = {paid} dollars",
        f"with the bonus {who.he} gets {paid} + {bonus} = {paid + bonus} dollars",
    )


WORD_PROBLEMS: tuple[Schema, ...] = (_shopping, _sharing, _distance, _ages, _savings, _baking, _wages)
