"""Chat: the second request changes what the first answer said."""

from __future__ import annotations

import random

from specauf_cli.data.families.words import (
    CITIES,
    COLORS,
    COUNT,
    DAYS,
    EVENTS,
    GIFTS,
    KINDS,
    KIT,
    LOOKS,
    MEALS,
    MONTHS,
    MOODS,
    PLACES,
    ROOMS,
    STUFF,
    THINGS,
    WORDS,
    Schema,
    Turns,
    an,
    numbered,
    people,
    say,
    split,
    up,
)


def _packing(r: random.Random) -> Turns:
    (city, other), month, days = r.sample(CITIES, 2), r.choice(MONTHS), r.randint(2, 14)
    *items, extra = r.sample(KIT, r.randint(5, 7))
    trip, keep = r.choice(("trip", "visit", "holiday", "journey")), r.randint(2, 3)
    first = (
        f"<I am planning a {trip} to {city} for {days} days in {month}. What should I pack?|Make a packing list for "
        f"a {trip} "
        f"of {days} days to {city} in {month}.|What do I need for a {trip} of {days} days in {city} in {month}?>"
    )
    end = say(r, f"<Have a good|Enjoy your> {trip} in {month}!")
    answer = f"Here is a packing list for {days} days in {city}:\n{numbered(items)}\n{end}"
    second, reply = r.choice(
        (
            (
                f"<Please add|I also need|Put> {extra}<| on the list>.",
                f"Here is the list with {extra}:\n{numbered([*items, extra])}",
            ),
            (
                f"I am going to {other} instead.",
                f"Here is a packing list for {days} days in {other}:\n{numbered(items)}",
            ),
            (
                f"<My bag is small. |>Keep only the first {COUNT[keep]} things.",
                f"Here are the first {COUNT[keep]} things:\n{numbered(items[:keep])}",
            ),
            (
                "<Write the list as|Turn the list into> <one|a> sentence.",
                f"For {days} days in {city} you should pack {', '.join(items[:-1])} and {items[-1]}.",
            ),
        )
    )
    return say(r, first), answer, say(r, second), reply


def _email(r: random.Random) -> Turns:
    (who, me, new), (day, moved, third) = people(r, 3), r.sample(DAYS, 3)
    time, topic = (
        r.choice(split("nine,ten,eleven,noon,two,three,four")),
        f"the {r.choice(EVENTS)} in {r.choice(CITIES)}",
    )
    reason = say(r, "<I have to see a doctor|my train is late|I am still on a trip|my sister visits me|I feel ill>")
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
    return say(r, first), mail(who.name, moved), say(r, second), reply


def _story(r: random.Random) -> Turns:
    (one, helper, new), (animal, friend) = people(r, 3), r.sample(KINDS["animal"], 2)
    hero, thing, place = (
        f"{an(r.choice(MOODS))} {animal}",
        f"{r.choice(COLORS)} {r.choice(GIFTS)}",
        r.choice(PLACES),
    )
    first = (
        f"<Tell me a short story|Write a short story|I need a story for my child> about {hero} named {one.name} who "
        f"<looks for|wants to find|lost> {an(thing)}."
    )

    def tell(name: str) -> str:
        start = f"Once there was {hero} named {name}. One day {name} lost {an(thing)} near the {place}."
        middle = f"A {friend} named {helper.name} came along and helped."
        return f"{start} {middle} Together they found the {thing}, and {name} was happy again."

    short = f"{up(hero)} named {one.name} lost {an(thing)}, and a {friend} named {helper.name} helped to find it."
    events = (f"{one.name} lost {an(thing)}.", f"A {friend} named {helper.name} helped.", f"They found the {thing}.")
    second, reply = r.choice(
        (
            (f"<Change the name to {new.name}.|Call the {animal} {new.name}.>", tell(new.name)),
            ("<Make it shorter.|Tell it in one sentence.>", short),
            ("<List the events.|Turn the story into a list.>", numbered(events)),
        )
    )
    return say(r, first), tell(one.name), say(r, second), reply


def _day_plan(r: random.Random) -> Turns:
    (who,), city, day = people(r, 1), r.choice(CITIES), r.choice(DAYS)
    (a, b, c), (meal, dish) = r.sample(PLACES, 3), r.sample(MEALS, 2)
    first = (
        f"<Plan a {day} in {city} for my friend {who.name}. {up(who.he)} likes {meal}.|{who.name} spends {day} in "
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
    return say(r, first), f"Here is a plan for {who.name} in {city}:\n{plan(a, c, meal)}", up(say(r, second)), reply


def _sorting(r: random.Random) -> Turns:
    words = r.sample(WORDS, r.randint(5, 7))
    ordered, shown = sorted(words), ", ".join(words)
    lead = say(r, f"<Sort these words in|Put these words into|Write these words in> alphabetical order: {shown}.")
    second, changed = r.choice(
        (
            ("Now in reverse order.", ordered[::-1]),
            ("Now remove the <first word|first one>.", ordered[1:]),
            ("Now remove the <last word|last one>.", ordered[:-1]),
            ("Write them in capitals.", [word.upper() for word in ordered]),
        )
    )
    answer = say(r, "<Here are the words in order|In alphabetical order|Sorted>:\n")
    return lead, answer + numbered(ordered), say(r, second), f"Here is the new list:\n{numbered(changed)}"


def _advert(r: random.Random) -> Turns:
    look, (color, other), thing, stuff = r.choice(LOOKS), r.sample(COLORS, 2), r.choice(THINGS), r.choice(STUFF)
    price, cut, room = r.randint(12, 90), r.randint(2, 9), r.choice(ROOMS)
    first = (
        f"<Write an advert for {an(look)} {color} {thing} made of {stuff}. It costs {price} dollars.|I want to sell "
        f"{an(look)} "
        f"{color} {thing} of {stuff} for {price} dollars. Write a text for the shop window.>"
    )

    def advert(dollars: int, shade: str) -> str:
        start = f"For sale: {an(look)} {shade} {thing}! It is made of {stuff} and looks good in every {room}."
        return f"{start} Take this {shade} {thing} home for only {dollars} dollars."

    short = f"For sale: {an(look)} {color} {thing} of {stuff}, only {price} dollars."
    second, reply = r.choice(
        (
            (f"<Lower the price by {cut} dollars.|Make it {cut} dollars cheaper.>", advert(price - cut, color)),
            (f"The {thing} is {other} now. Change the text.", advert(price, other)),
            ("<Make it shorter.|That is too long.>", short),
        )
    )
    return say(r, first), advert(price, color), say(r, second), reply


CHAT: tuple[Schema, ...] = (_packing, _email, _story, _day_plan, _sorting, _advert)
