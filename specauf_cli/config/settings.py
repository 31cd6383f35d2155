"""What follows from the schema: validation, identity, what is recorded or shared, and the list of all settings."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from specauf_cli.config.identity import is_local
from specauf_cli.config.schema import (
    MACHINE,
    MEASURED,
    NAMES_CODE,
    SHARED,
    Config,
    Formerly,
    Mark,
    Place,
    Since,
    TermConfig,
)
from specauf_cli.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key (``*`` for any name), its meaning, what is valid, and its marks."""

    key: str
    meaning: str
    valid: str
    marks: tuple[Mark, ...]
    place: str | None = None

    @property
    def counts(self) -> str:
        """Where it counts: in the run id (and the record), in the record only, or on this machine only."""
        return "machine" if MACHINE in self.marks else "record" if MEASURED in self.marks else "run"


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the schema."""
    return tuple(_walk(Config, "", ()))


def find(key: str) -> Setting | None:
    """The setting of a dotted key, or None."""
    parts = key.split(".")
    if parts[:1] == ["objective"]:  # objective.base.0.credit, of a list of terms, is objective.base.credit
        parts = [part for part in parts if not part.isdigit()]
    for setting in settings():
        names = setting.key.split(".")
        if len(names) == len(parts) and all(n in ("*", p) for n, p in zip(names, parts, strict=True)):
            return setting
    return None


def names_code(key: str) -> bool:
    """True for a setting that may name code to run."""
    setting = find(key)
    return setting is not None and NAMES_CODE in setting.marks


def places() -> dict[str, str]:
    """Settings that hold a file or folder of this machine, and the word that they are published as."""
    return {s.key: s.place for s in settings() if s.place is not None}


def validated(kind: type[T], values: Any, where: str = "") -> T:
    """``values`` as ``kind``. Errors: InputError, one line: the key, its value, what is valid, the nearest name."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise InputError(_explain(error, kind, where)) from error


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain nested ``values`` of a configuration without what this machine alone needs; folders are not named."""
    return _kept(Config, values, lambda marks: MACHINE not in marks)


def identity(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``recorded`` values that determines the trained weights (with the content of data and target)."""
    return _kept(Config, resolved, lambda marks: MACHINE not in marks and MEASURED not in marks, former_words=True)


def said(section: Any) -> dict[str, Any]:
    """A section as plain values, without the settings whose value is what held before they existed (``Since``)."""
    return _kept(type(section), dataclasses.asdict(section), lambda _: True)


def shared(config: Config) -> dict[str, Any]:
    """The settings that must be equal in runs that are trained or measured together."""
    common: dict[str, Any] = {}
    for name, info in _fields(Config).items():
        value = getattr(config, name)
        if SHARED in info.metadata:
            common[name] = value
        elif dataclasses.is_dataclass(value):
            parts = [k for k, i in _fields(type(value)).items() if SHARED in i.metadata]
            common |= {f"{name}.{k}": getattr(value, k) for k in parts}
    return common


def _fields(kind: Any) -> dict[str, FieldInfo]:
    return typing.cast(dict[str, FieldInfo], kind.__pydantic_fields__)


def _kept(
    kind: Any, values: Mapping[str, Any], keep: Callable[[list[Any]], bool], *, former_words: bool = False
) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, info in _fields(kind).items():
        if name not in values or not keep(info.metadata):
            continue
        value = values[name]
        since = next((m for m in info.metadata if isinstance(m, Since)), None)
        if since is not None and value == since.value:
            continue
        place = next((m for m in info.metadata if isinstance(m, Place)), None)
        if place is not None and is_local(value):
            value = place.word
        former = next((m for m in info.metadata if isinstance(m, Formerly)), None)
        if former is not None and former_words:
            value = former.words.get(value, value)
        inner, many = _inside(info.annotation)
        if inner is TermConfig or inner is None:
            kept[name] = value
        elif many:
            kept[name] = {k: _kept(inner, v, keep, former_words=former_words) for k, v in value.items()}
        else:
            kept[name] = None if value is None else _kept(inner, value, keep, former_words=former_words)
    return kept


def _inside(annotation: Any) -> tuple[Any, bool]:
    """The section that an annotation holds, and whether it holds many by name; None for a plain value."""
    annotation = _bare(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [_inside(a) for a in typing.get_args(annotation) if a is not type(None)]
        return next((p for p in parts if p[0] is not None), (None, False))
    if typing.get_origin(annotation) in (dict, tuple):
        inner = _inside(typing.get_args(annotation)[typing.get_origin(annotation) is dict])[0]
        return inner, inner is not None or typing.get_origin(annotation) is dict
    return (annotation, False) if hasattr(annotation, "__pydantic_fields__") else (None, False)


def _bare(annotation: Any) -> Any:
    return _bare(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is typing.Annotated else annotation


def _walk(kind: Any, prefix: str, outer: tuple[Mark, ...]) -> Iterator[Setting]:
    for name, info in _fields(kind).items():
        if kind is Config and name == "resolved":
            continue
        marks = (*outer, *(m for m in info.metadata if isinstance(m, Mark)))
        inner, many = _inside(info.annotation)
        key = f"{prefix}{name}"
        if inner is not None:
            by_name = many and inner is not TermConfig  # a branch of one term is written without a list
            yield from _walk(inner, f"{key}.*." if by_name else f"{key}.", marks)
            continue
        place = next((m.word for m in info.metadata if isinstance(m, Place)), None)
        if kind is TermConfig and name == "knobs":  # in yaml they are keys of the term
            key, valid = f"{prefix}*", "number or text"
        elif name == "knobs":
            key, valid = f"{key}.*", "number or text"
        elif typing.get_origin(_bare(info.annotation)) is dict:
            key, valid = f"{key}.*", "text"
        else:
            valid = _valid(info.annotation, info.metadata)
        yield Setting(key, " ".join((info.description or "").split()), valid, marks, place)


def _valid(annotation: Any, metadata: typing.Sequence[Any]) -> str:
    """What a plain value may be, in words: ``1..1000``, ``fp32 | bf16``, ``number above 0``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return _valid(inner, [*metadata, *(x for m in more for x in (getattr(m, "metadata", None) or [m]))])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_valid(a, metadata) for a in typing.get_args(annotation)))
    if origin is Literal:
        return " | ".join(typing.get_args(annotation))
    if origin is tuple:
        arguments = [a for a in typing.get_args(annotation) if a is not Ellipsis]
        return f"list of {_valid(arguments[0], [])}".replace("number", "numbers", 1)
    if annotation is type(None):
        return "null"
    if annotation is bool:
        return "true | false"
    if annotation in (int, float):
        return _range(annotation, metadata)
    return "name" if any(getattr(m, "pattern", None) for m in metadata) else "text"


def _range(kind: type, metadata: typing.Sequence[Any]) -> str:
    low: Any = next((m.ge for m in metadata if isinstance(m, Ge)), None)
    above: Any = next((m.gt for m in metadata if isinstance(m, Gt)), None)
    high: Any = next((m.le for m in metadata if isinstance(m, Le)), None)
    what = "whole number" if kind is int else "number"
    if low is None and above is None:
        return what
    top = "" if high is None or high >= 10**9 else f"{high:,.7g}"
    if above is not None:
        return f"{what} above {above:g}{f', at most {top}' if top else ''}"
    return f"{what} {low:g}..{top}" if top else f"{what} from {low:g}"


UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping of settings",
}


def _explain(error: ValidationError, kind: Any, where: str) -> str:
    """One line for the first thing that is wrong."""
    problems = error.errors()
    # An unknown name explains a missing one. Of a value that may be of two kinds, every kind reports: the one that got
    # furthest says what is wrong.
    unknown = [p for p in problems if p["type"] in UNKNOWN]
    same = [p for p in problems if p["loc"][:1] == problems[0]["loc"][:1]]
    first = unknown[0] if unknown else max(same, key=lambda p: len(_steps(kind, p["loc"])))
    wrong, value, context = first["type"], first["input"], first.get("ctx", {})
    steps = _steps(kind, first["loc"])
    key = ".".join(filter(None, [where, *(s.text for s in steps)])).replace(".[", "[")
    if wrong in UNKNOWN:
        return f"unknown setting {key}.{nearest(steps[-1].text, list(_fields(steps[-1].section)))}"
    if wrong in ("missing", "missing_argument"):
        return f"{key} is missing"
    if wrong == "value_error":
        reason = str(context["error"])
        return reason if "=" in reason.split()[0] or not key else f"{key}={_shown(value)} {reason}"
    if wrong == "literal_error":
        words = _words(_fields(steps[-1].section)[steps[-1].name].annotation)
        return f"{key}={_shown(value)} is none of {', '.join(words)}.{nearest(str(value), words)}"
    if wrong == "string_pattern_mismatch":
        return f"{key}={_shown(value)} becomes part of file names; use letters, digits and . _ + - (100 at most)"
    reasons: dict[str, Callable[[], str]] = {
        "greater_than_equal": lambda: f"must be at least {context['ge']:g}",
        "greater_than": lambda: f"must be above {context['gt']:g}",
        "less_than_equal": lambda: f"must be at most {context['le']:,.12g}",
        "finite_number": lambda: "must be a finite number",
        "too_short": lambda: f"needs {context['min_length']} or more",
        "too_long": lambda: f"has more than {context['max_length']} items",
    }
    reason = reasons[wrong]() if wrong in reasons else f"is not valid; expected {EXPECTED.get(wrong, first['msg'])}"
    return f"{key}={_shown(value)} {reason}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Step(NamedTuple):
    """One step of a location: its text in a key, and the section and field that it is in."""

    text: str
    section: Any
    name: str


def _steps(kind: Any, loc: tuple[int | str, ...]) -> list[Step]:
    """The steps of a location that are keys; pydantic puts the names of alternatives between them."""
    steps: list[Step] = []
    here, section, name = (kind, False), kind, ""  # a section (or None for a plain value), and whether by name or place
    for step in loc:
        inside, many = here
        if isinstance(step, int):
            if inside is not TermConfig:
                steps.append(Step(f"[{step}]", section, name))
            elif step > 0:  # the first term may be the only one, which is written without a list
                steps.append(Step(str(step), section, name))
            here = (inside, False) if many else here
        elif many:
            steps.append(Step(step, section, name))
            here = (inside, False)
        elif inside is not None:
            section, name = inside, step
            if (inside, step) != (TermConfig, "knobs"):  # in yaml they are keys of the term
                steps.append(Step(step, section, name))
            here = _inside(_fields(inside)[step].annotation) if step in _fields(inside) else (None, False)
    return steps


def _words(annotation: Any) -> list[str]:
    """The words of a ``Literal`` inside an annotation."""
    if typing.get_origin(annotation) is Literal:
        return [str(a) for a in typing.get_args(annotation)]
    return [w for part in typing.get_args(annotation) for w in _words(part)]
