"""Every objective for a reader: what its yaml and the docstrings of its losses and credits say, as plain data.

Signatures and docstrings are read from the source files without importing them, so a list needs no torch and runs no
code of the user's.
"""

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from specauf_cli.config.compose import plain_values, read_yaml
from specauf_cli.config.groups import file_of, folder, groups
from specauf_cli.config.names import CREDITS, LOSSES
from specauf_cli.config.schema import ObjectiveConfig, TermConfig
from specauf_cli.config.settings import validated
from specauf_cli.errors import InputError, first_line, nearest

NORMALISERS = "specauf_cli.objectives.loss"
"""Its function ``weighted`` describes every normaliser."""
LABELS = ("Range", "Gradient", "Depends on", "Source", "Errors")
"""Words that start a part of a docstring, at the beginning of a line."""
SECTIONS = {
    "nothing": "Uniform weights",
    "depth": "Weights that depend on depth",
    "first miss": "Weights that depend on the drafter's first miss",
    "confidence": "Weights that depend on the drafter's confidence",
    "target": "Weights or losses that depend on the target's distribution",
    "control": "Controls",
    "own": "Objectives with a credit that does not say what it depends on",
}
"""What an objective depends on, from the least to the most, and the title of those that do."""
LABEL, RANK, PROGRESS, DISTRIBUTION = "label", "rank", "progress", "target's distribution"
NEEDS_OF_DATA = {
    "gold_rank": (LABEL, RANK),
    "target_gold_logprob": (LABEL, DISTRIBUTION),
    "overlap": (DISTRIBUTION,),
    "progress": (PROGRESS,),
}
"""What must be known for the data that a credit asks for (``config/names.py``, ``PROVIDED``)."""


@dataclass(frozen=True)
class Function:
    """A loss or a credit. ``meaning`` and ``formula`` are its first sentence, the formula empty where it has none;
    ``parts`` are the labelled parts of its docstring (``LABELS``); ``arguments`` are its positional ones, ``knobs`` the
    keyword-only ones."""

    name: str
    meaning: str
    formula: str
    parts: dict[str, str]
    arguments: tuple[str, ...]
    knobs: tuple[str, ...]

    @property
    def depends_on(self) -> tuple[str, ...]:
        """What the weights of a credit depend on, in words of ``SECTIONS`` and ``progress``; empty where it does not
        say."""
        words = self.parts.get("Depends on", "").rstrip(".")
        return tuple(words.split(", ")) if words else ()


@dataclass(frozen=True)
class Entry:
    """An objective. ``line`` says in one line what it is, ``source`` where it is from, ``path`` is its yaml."""

    config: ObjectiveConfig
    choice: str
    line: str
    source: str
    path: Path

    @property
    def functions(self) -> list[tuple[Function, Function]]:
        """Loss and credit of every term of every branch."""
        terms = [term for terms in self.config.branches.values() for term in terms]
        return [(loss(term.loss), credit(term.credit)) for term in terms]

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be known to compute it: label, rank, progress, target's distribution."""
        needed: set[str] = set()
        for own_loss, own_credit in self.functions:
            needed.add(DISTRIBUTION if "target_logits" in own_loss.arguments else LABEL)
            needed.update(need for data in own_credit.arguments[1:] for need in NEEDS_OF_DATA.get(data, ()))
            if {"first miss", "confidence"} & set(own_credit.depends_on):
                needed.add(LABEL)
        return tuple(need for need in (LABEL, RANK, PROGRESS, DISTRIBUTION) if need in needed)

    @property
    def section(self) -> str:
        """The key of ``SECTIONS`` under which it belongs."""
        own_credits = [own_credit for _, own_credit in self.functions]
        if any(own_credit.meaning.startswith("Control") for own_credit in own_credits):
            return "control"
        if not all(own_credit.depends_on for own_credit in own_credits):
            return "own"
        words = {word for own_credit in own_credits for word in own_credit.depends_on}
        if DISTRIBUTION in self.needs:
            words.add("target")
        return next((key for key in reversed(SECTIONS) if key in words), "nothing")

    @property
    def command(self) -> str:
        """What trains it, on the first backbone it is for."""
        backbone = self.config.backbones[0]
        return f"specauf train objective={self.choice}" + ("" if backbone == "dflash" else f" backbone={backbone}")

    @property
    def is_shipped(self) -> bool:
        """Whether it is one of ``conf/``, and none of the user's own."""
        return self.path.is_relative_to(folder("conf"))

    @property
    def shown_path(self) -> str:
        """Its yaml: relative to the checkout if it is a shipped one."""
        return str(Path("conf", self.path.relative_to(folder("conf"))) if self.is_shipped else self.path)


def entries() -> list[Entry]:
    """Every objective, shipped and the user's own, by section and name. Errors: InputError naming the yaml."""
    order = list(SECTIONS)
    return sorted(map(entry, groups()["objective"]), key=lambda e: (order.index(e.section), e.choice))


def entry(name: str) -> Entry:
    """One objective. Errors: InputError for an unknown name, with the nearest; for a yaml that is none, naming it."""
    known = groups()["objective"]
    if name not in known:
        raise InputError(f"unknown objective {name!r}; specauf objectives lists them all.{nearest(name, known)}")
    path = file_of("objective", name)
    try:
        values = read_yaml(path)
        if "defaults" in values:  # it builds on another; composing every objective would take seconds
            values = plain_values([f"objective={name}"])["objective"]
        config = validated(ObjectiveConfig, values)
        for term in (term for terms in config.branches.values() for term in terms):
            loss(term.loss)  # refuses a function that does not exist
            credit(term.credit)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    line, source = _header(path)
    return Entry(config, name, line, source, path)


def loss(name: str) -> Function:
    """A loss by its name in a yaml. Errors: InputError where there is no such function."""
    return _function(name, LOSSES)


def credit(name: str) -> Function:
    """A credit by its name in a yaml. Errors: InputError where there is no such function."""
    return _function(name, CREDITS)


def losses() -> list[Function]:
    """The shipped losses, in the order of their file."""
    return [loss(name) for name in definitions(LOSSES) if not name.startswith("_")]


def credits() -> list[Function]:
    """The shipped credits, in the order of their file."""
    return [credit(name) for name in definitions(CREDITS) if not name.startswith("_")]


def normalisers() -> dict[str, str]:
    """What a term can be divided by: name and meaning."""
    text = ast.get_docstring(definitions(NORMALISERS)["weighted"]) or ""
    found = re.findall(r"^``(\w+)``: (.*?)(?=\n``|\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def term_text(term: TermConfig) -> str:
    """A term in one line, its knobs beside their function: ``0.1 x ce x decay(gamma=4), valid``; the normaliser only
    where the yaml names one."""
    called = [_call(function, term) for function in (loss(term.loss), credit(term.credit))]
    product = " x ".join([*([] if term.weight == 1 else [f"{term.weight:g}"]), *called])
    return product + (f", {term.normalize}" if term.normalize else "")


def _call(function: Function, term: TermConfig) -> str:
    given = ", ".join(f"{knob}={term.knobs[knob]}" for knob in function.knobs if knob in term.knobs)
    return f"{function.name}({given})" if given else function.name


def _header(path: Path) -> tuple[str, str]:
    """The line that says what a yaml is, and its source, from the comments it begins with; each may be empty."""
    comments: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").strip())
    source = next((c.removeprefix("Source:").strip() for c in comments if c.startswith("Source:")), "")
    first = comments[0] if comments else ""
    return first.partition(" · ")[2], source


def _function(name: str, home: str) -> Function:
    module, _, own = name.rpartition(".")
    defined = definitions(module or home)
    if own not in defined:
        raise InputError(f"there is no function {own!r} in {module or home}.{nearest(own, defined)}")
    definition = defined[own]
    summary, parts = _parts(ast.get_docstring(definition) or "")
    meaning, formula = _meaning_and_formula(re.split(r"\.(?:\s|$)", summary, maxsplit=1)[0])
    arguments = tuple(argument.arg for argument in (*definition.args.posonlyargs, *definition.args.args))
    knobs = tuple(argument.arg for argument in definition.args.kwonlyargs)
    return Function(name, meaning, formula, parts, arguments, knobs)


def _meaning_and_formula(sentence: str) -> tuple[str, str]:
    """A first sentence taken apart: ``MEANING: c_i = FORMULA`` (also with a comma), ``c_i = FORMULA: MEANING``, or
    ``MEANING: FORMULA``."""
    if split := re.match(r"(c_i = .*?): (.*)", sentence):
        return split[2], split[1]
    if split := re.match(r"(.*?)[:,] (c_i = .*)", sentence) or re.match(r"(.*?): (.*)", sentence):
        return split[1], split[2]
    return ("", sentence) if sentence.startswith("c_i = ") else (sentence, "")


def _parts(docstring: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring and its labelled parts, white space as single spaces."""
    starts = "|".join(LABELS)
    labelled = re.findall(rf"^({starts}): (.*?)(?=\n(?:{starts}): |\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    first = docstring.split("\n\n")[0]
    return " ".join(first.split()), {label: " ".join(text.split()) for label, text in labelled}


@cache
def definitions(module: str) -> dict[str, ast.FunctionDef]:
    """The functions that the source of a module defines. Errors: InputError where it has none that can be read."""
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin if spec and spec.origin else "").read_text("utf-8"))
    except (ImportError, ValueError, OSError, SyntaxError) as error:
        raise InputError(f"the source of {module} cannot be read: {first_line(error)}") from error
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
