"""Word lists and shared helpers of the procedural corpus.

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


def split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list."""
    return tuple(part.strip() for part in text.split(","))


WOMEN = split(
    "Alice,Amara,Anna,Bella,Carla,Chloe,Clara,Daisy,Diana,Elena,Emma,Esther,Fiona,Freya,Gina,Grace,Hana,Hazel,Irene,"
    "Ivy,Jade,Julia,Karin,Kira,Laila,Lena,Lucy,Maria,Maya,Mina,Nadia,Nina,Nora,Olga,Paula,Petra,Rosa,Ruth,Sana,Sara,"
    "Sofia,Tara,Tessa,Uma,Vera,Wendy,Yara,Zoe"
)
MEN = split(
    "Adam,Ahmed,Aron,Ben,Boris,Carl,Cesar,Colin,Dan,David,Eli,Emil,Felix,Frank,Gavin,George,Hugo,Ian,Ivan,Jack,James,"
    "Jonas,Karim,Kevin,Leo,Liam,Luis,Marco,Martin,Nils,Noah,Omar,Oscar,Paul,Pedro,Ravi,Robert,Sam,Simon,Tariq,Theo,"
    "Tom,Umar,Victor,Walter,Xavier,Yusuf,Zane"
)
GOODS = split(
    "pens,notebooks,rulers,markers,erasers,folders,posters,stickers,candles,mugs,plates,cups,spoons,towels,pillows,"
    "lamps,clocks,baskets,brushes,ribbons,balloons,puzzles,marbles,kites,hats,gloves,socks,shirts,belts,buttons,bulbs,"
    "magnets,batteries,ropes,hooks,boxes,bottles,jars,bells,apples,pears,plums,peaches,lemons,melons,onions,carrots"
)
BAKED = split("muffins,cookies,pies,rolls,cakes,waffles,tarts,pancakes,scones,bagels,buns,pretzels")
CITIES = split(
    "Lisbon,Oslo,Cairo,Lima,Kyoto,Rome,Delhi,Prague,Dublin,Vienna,Boston,Quito,Nairobi,Seoul,Athens,Perth,Havana,"
    "Bergen,Porto,Madrid,Denver,Hanoi,Tunis,Geneva"
)
DAYS = split("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday")
MONTHS = split("January,February,March,April,May,June,July,August,September,October,November,December")
LOOKS = split("small,large,old,new,bright,heavy,light,round,narrow,clean,dusty,shiny,simple,strange,plain,modern")
MOODS = split("gentle,brave,clever,lazy,happy,curious,shy,proud,friendly,hungry,sleepy,lucky,noisy,quiet,young,tired")
COLORS = split("red,blue,green,yellow,white,black,brown,purple,gray,orange,pink")
KINDS = {
    "animal": split("cat,dog,fox,horse,rabbit,goat,sheep,bear,wolf,mouse,tiger,camel,duck,heron,turtle"),
    "tool": split("hammer,saw,wrench,drill,shovel,rake,ladder,chisel,axe,screwdriver,level,file"),
    "food": split("bread,cheese,rice,soup,salad,honey,butter,pasta,yogurt,jam,cereal,stew"),
    "plant": split("rose,tulip,oak,maple,fern,cactus,daisy,lily,pine,willow,moss,clover"),
    "vehicle": split("bus,train,truck,bicycle,tram,ferry,van,taxi,scooter,canoe,tractor,wagon"),
    "instrument": split("piano,violin,drum,flute,trumpet,guitar,harp,cello,banjo,organ,horn,lute"),
}
WORDS = tuple(word for kind in KINDS.values() for word in kind)
THINGS = split("table,chair,vase,mirror,carpet,cabinet,teapot,blanket,bench,statue,bucket,curtain,desk,box")
STUFF = split("wood,glass,stone,metal,clay,paper,cotton,wool,leather,plastic")
ROOMS = split("kitchen,garden,library,attic,hall,office,garage,bedroom,workshop,museum,station,cafe")
GIFTS = split("book,scarf,painting,teapot,plant,record,sweater,lamp,puzzle,camera,basket,watch,map,bracelet")
EVENTS = split("wedding,party,concert,dinner,picnic,festival,match,fair,exhibition,workshop,reunion,parade")
KIT = split(
    "a coat,a hat,an umbrella,a map,a camera,a charger,a towel,a passport,a notebook,a sweater,a torch,a toothbrush,"
    "a scarf,a jacket,a raincoat,a water bottle,a first aid kit,a travel pillow,some soap,a swimsuit,a guide book"
)
PLACES = split(
    "harbor,castle,museum,market,tower,bridge,park,cathedral,zoo,theater,palace,river,lake,gallery,aquarium,old town,"
    "botanical garden,opera house,beach"
)
MEALS = split("soup,rice,pasta,salad,curry,stew,noodles,bread,dumplings,fish,omelets,tacos")
JOBS = split("teacher,nurse,farmer,driver,painter,cook,pilot,baker,dentist,writer,singer,tailor")
COUNT = ("zero", "one", "two", "three", "four", "five", "six")
ORDINALS = ("first", "second", "third", "fourth")


class Person(NamedTuple):
    """A name and its pronouns."""

    name: str
    he: str
    his: str
    him: str


def people(r: random.Random, count: int) -> list[Person]:
    """Different people; a name tells the pronouns."""
    names = r.sample([*WOMEN, *MEN], count)
    return [Person(name, *(("she", "her", "her") if name in WOMEN else ("he", "his", "him"))) for name in names]


def say(r: random.Random, text: str) -> str:
    """``text`` with one drawn alternative for each ``<one|another>``."""
    return re.sub(r"<([^<>]*)>", lambda match: r.choice(match[1].split("|")), text)


def an(word: str) -> str:
    """``word`` after its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def up(text: str) -> str:
    """``text`` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def numbered(lines: Sequence[str]) -> str:
    """One line each, numbered from 1."""
    return "\n".join(f"{at}. {up(line)}" for at, line in enumerate(lines, 1))


def worked(r: random.Random, steps: Sequence[str]) -> str:
    """Steps as lines in one of three styles: after the first line a reader knows how the next ones open."""
    style = r.randrange(3)
    if style == 0:
        return "\n".join(f"Step {at}: {up(step)}." for at, step in enumerate(steps, 1))
    if style == 1:
        words = ["First", *["Then", "Next"][: len(steps) - 2], "Finally"]
        return "\n".join(f"{word}, {step}." for word, step in zip(words, steps, strict=True))
    return "\n".join(f"{up(step)}." for step in steps)
