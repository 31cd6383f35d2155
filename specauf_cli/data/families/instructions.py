"""Instructions: single requests."""

from __future__ import annotations

import random

from specauf_cli.data.families.words import (
    CITIES,
    COLORS,
    COUNT,
    DAYS,
    EVENTS,
    GIFTS,
    JOBS,
    KINDS,
    LOOKS,
    MEALS,
    ROOMS,
    STUFF,
    THINGS,
    Schema,
    Turns,
    an,
    numbered,
    people,
    say,
    split,
    up,
)

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
    (who,), city, goal, n = people(r, 1), r.choice(CITIES), r.choice(tuple(_TIPS)), r.randint(3, 5)
    question = (
        f"<{who.name} from {city} wants to {goal}. Give {who.him} {COUNT[n]} tips."
        f"|List {COUNT[n]} tips that help {who.name} from {city} to {goal}."
        f"|My friend {who.name} from {city} would like to {goal}. What are {COUNT[n]} good tips?>"
    )
    lines = [f"{tip}." for tip in r.sample(split(_TIPS[goal]), n)]
    return say(r, question), f"Here are {COUNT[n]} tips that help {who.name} to {goal}:\n{numbered(lines)}"


def _letter(r: random.Random) -> Turns:
    (a, b), event, room = people(r, 2), r.choice(EVENTS), r.choice(ROOMS)
    gift = f"{r.choice(COLORS)} {r.choice(GIFTS)}"
    question = (
        f"<Write a letter from {a.name} to {b.name} to say thank you for the {gift} at the {event}.|{b.name} gave "
        f"{a.name} "
        f"{an(gift)} at the {event}. Write a short thank you letter.>"
    )
    answer = (
        f"<Dear|Hello> {b.name},\nthank you very much for the {gift}. It was a lovely surprise at the {event}. Now "
        "it is in my "
        f"{room}, and <I use it every day|I look at it every morning|all my friends like it>. I hope to see you soon.\n"
        f"<Many thanks|Best wishes|Yours>,\n{a.name}"
    )
    return say(r, question), say(r, answer)


def _classify(r: random.Random) -> Turns:
    a, b = r.sample(tuple(KINDS), 2)
    pairs = [(word, kind) for kind in (a, b) for word in r.sample(KINDS[kind], r.randint(2, 4))]
    pairs = r.sample(pairs, len(pairs))
    groups = [f"{up(kind)}: {', '.join(word for word, own in pairs if own == kind)}" for kind in (a, b)]
    each = [f"- {word}: {kind}" for word, kind in pairs]
    lead = f"<Classify each word as {a} or {b}|Sort these words into {a} and {b}|Is each word {an(a)} or {an(b)}>"
    return say(r, f"{lead}: {', '.join(word for word, _ in pairs)}."), "\n".join(r.choice((groups, each)))


def _convert(r: random.Random) -> Turns:
    (who,) = people(r, 1)
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
    return say(r, question), (
        f"One {one} has {factor} {small}, so {n} {big} are {n} * {factor} = {total} {small}. "
        f"Adding {m} {small} gives {total} + {m} = {total + m} {small}."
    )


def _summary(r: random.Random) -> Turns:
    (who,), city, job, meal = people(r, 1), r.choice(CITIES), r.choice(JOBS), r.choice(MEALS)
    age, pet, played = r.randint(21, 79), r.choice(KINDS["animal"]), r.choice(KINDS["instrument"])
    facts = f"- name: {who.name}\n- age: {age}\n- city: {city}\n- job: {job}"
    facts += f"\n- pet: {pet}\n- plays: {played}\n- eats: {meal}"
    lead = "<Summarize this fact sheet|Write two sentences about this person|Turn these facts into a short text>"
    answer = (
        f"{who.name} is <a {age} year old {job} from {city} with {an(pet)}|{age} years old, lives in {city}, works "
        f"as a {job} "
        f"and has {an(pet)}>. In {who.his} free time {who.he} plays the {played} and likes to eat {meal}."
    )
    return f"{say(r, lead)}:\n{facts}", say(r, answer)


def _describe(r: random.Random) -> Turns:
    (owner,), look, (color, other) = people(r, 1), r.choice(LOOKS), r.sample(COLORS, 2)
    thing, stuff, room = r.choice(THINGS), r.choice(STUFF), r.choice(ROOMS)
    question = (
        f"<Describe {an(look)} {color} {thing} in the {room}.|Write a short description of {an(look)} {color} "
        f"{thing} that "
        f"stands in the {room}.|In the {room} there is {an(look)} {color} {thing}. What does it look like?>"
    )
    answer = (
        f"The {color} {thing} in the {room} is {look} and made of {stuff}. It stands near the "
        "<door|window|wall|stairs>, and its "
        f"sides are painted in {other}. It <belongs to|was built by|was a gift from> {owner.name}, and "
        f"<everyone likes it|it is still in use|{owner.he} is proud of it>."
    )
    return say(r, question), say(r, answer)


def _rewrite(r: random.Random) -> Turns:
    (who, other), day, (a, b) = people(r, 2), r.choice(DAYS), r.sample(THINGS, 2)
    verbs = (
        "buys bought,finds found,sells sold,brings brought,paints painted,cleans cleaned,hides hid,takes took,sees saw"
    )
    now, past = r.choice(split(verbs)).split()
    first, second = f"the {r.choice(LOOKS)} {a} in the {r.choice(ROOMS)}", f"the {r.choice(COLORS)} {b}"
    lead = say(r, "<Rewrite in|Put this text into|Change the verbs to> the past tense")
    return (
        f"{lead}: On {day} {who.name} {now} {first}, and {other.name} {now} {second}. They are happy and go home.",
        f"On {day} {who.name} {past} {first}, and {other.name} {past} {second}. They were happy and went home.",
    )


INSTRUCTIONS: tuple[Schema, ...] = (_tips, _letter, _classify, _convert, _summary, _describe, _rewrite)
