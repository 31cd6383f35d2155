"""Overrides in, plain objects out: the only file that knows Hydra and OmegaConf."""

import copy
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specauf_cli.config import identity, names, settings
from specauf_cli.config.groups import OWN, check_choices, file_of, folder, groups, own_folder
from specauf_cli.config.overrides import key_of
from specauf_cli.config.schema import BackboneConfig, Config, ObjectiveConfig
from specauf_cli.errors import InputError, Interrupted, first_line, nearest, unknown_option, whole_text
from specauf_cli.runtime import ranks

SIZED = {"domino": ("gru_hidden_dim", "emb_dim"), "dspark": ("markov_rank",)}
"""Backbones with parts that a profile sizes by the width of its target, and the keys of those sizes."""
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
"""Options of Hydra that take the next word as their value."""


def _search() -> list[str]:
    """The override that makes Hydra search the user's own folder too."""
    place = own_folder()
    return [] if place is None else [f"hydra.searchpath=[{quoted(f'file://{place}')}]"]


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that ``overrides`` describe. Errors: InputError, one line, with the nearest valid name."""
    for word in overrides:
        if key_of(word).startswith(("hydra.", "hydra/")):
            raise InputError(f"{word!r}: Hydra's own settings are for specauf train -m; a table takes --launcher NAME")
        if key_of(word) == "experiment":
            raise InputError(f"{word!r} names a table's drafters; it is for specauf train -m")
    return _resolved(compose_raw(overrides), overrides)


def _resolved(raw: DictConfig, overrides: Sequence[str]) -> Config:
    """``raw``, with its objective under the name that it has on its backbone: auf on domino is b_auf."""
    try:
        like = raw.backbone.get("like") or raw.backbone.name
        alias = OmegaConf.select(raw, f"objective.aliases.{like}")
        if alias is not None:
            raw = compose_raw([*(o for o in overrides if not o.startswith("objective=")), f"objective={alias}"])
        return build(raw)
    except OmegaConfBaseException as error:
        raise InputError(f"configuration: {first_line(error)}") from error


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """The same as Hydra's own object (for the commands that print it)."""
    overrides = _plain_paths(overrides)
    check_choices(overrides)
    # A job of hydra.main composes too, and Hydra knows one configuration at a time.
    outer = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(config_dir=str(folder("conf")), version_base="1.3"):
            return hydra_compose("train", overrides=[*_search(), *overrides])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Key and plain value of every override, as Hydra's own grammar reads them (None for a deletion).

    Errors: InputError for a word that is not an override.
    """
    try:
        words = OverridesParser.create().parse_overrides(_plain_paths(overrides))
        return [(word.key_or_group, None if word.is_delete() else word.value()) for word in words]
    except (HydraException, ValueError, RecursionError) as error:
        raise InputError(f"not an override: {first_line(error)[:200]}") from error


LITERAL = re.compile(r"[+-]?[\d._]+(e[+-]?\d+)?|true|false|nan|null|[+-]?inf", re.IGNORECASE)
"""What Hydra's grammar would not read as text."""
PLAIN = re.compile(r"null|[\w./:@%-]*|'.*'|\".*\"|.*\$\{.*", re.DOTALL | re.ASCII)
"""Names of files and folders that Hydra's grammar reads as they are typed; ``null`` is none."""


def _plain_paths(overrides: Sequence[str]) -> list[str]:
    """``overrides`` with paths as Hydra's grammar needs them: ``~`` expanded, special characters quoted."""
    words = []
    for word in overrides:
        key, equals, value = word.partition("=")
        as_typed = value == "null" or (PLAIN.fullmatch(value) and not LITERAL.fullmatch(value))
        if equals and key_of(word) in settings.places() and not as_typed:
            word = f"{key}={quoted(os.path.expanduser(value))}"
        words.append(word)
    return words


def quoted(text: str, mark: str = "'") -> str:
    """``text`` between quotation marks (``mark``), as the value of an override that Hydra's grammar reads as text.

    A backslash is itself there, unless it is right before a quotation mark.
    """
    inside = re.sub(rf"(\\*)({mark}|$)", lambda m: m[1] * 2 + (f"\\{m[2]}" if m[2] else ""), text)
    return f"{mark}{inside}{mark}"


def run_hydra(task: Callable[[Config, list[str]], None], arguments: Sequence[str]) -> None:
    """Hands ``arguments`` to ``hydra.main`` (so ``-m``, ``--cfg`` and ``--help`` work) and calls ``task`` for each job.

    ``task`` receives the configuration and the overrides of its own job.
    """
    _check_options(arguments)
    plain = [a for before, a in pairwise(["", *arguments]) if not a.startswith("-") and before not in WITH_VALUE]
    plain = _plain_paths(plain)
    if not {"--help", "-h", "--hydra-help"} & set(arguments):
        several = next((o for o in plain if _is_simple_sweep(o)), None)
        if several and not {"-m", "--multirun"} & set(arguments):
            raise InputError(
                f"{several!r} names several values; add -m to run each of them: specauf train -m {several}"
            )
        check_choices(plain)

    failed: list[str] = []
    stopped: list[BaseException] = []

    def job(raw: DictConfig) -> None:
        try:
            overrides = list(HydraConfig.get().overrides.task)
            multirun = HydraConfig.get().mode is RunMode.MULTIRUN
            elsewhere = multirun and "BasicLauncher" not in HydraConfig.get().launcher._target_
        except OmegaConfBaseException as error:  # an interpolation that cannot be resolved
            stopped.append(InputError(f"configuration: {first_line(error)}"))
            raise SystemExit(2) from error
        try:
            task(_resolved(raw, overrides), overrides)
        except InputError as error:
            if elsewhere:  # in a process of its own: Hydra brings the error back
                raise
            if not multirun or ranks.WORLD > 1:  # a rank alone cannot begin the next job
                stopped.append(error)
                raise SystemExit(2) from error
            print(f"specauf: {' '.join(overrides)}: {error}", file=sys.stderr)  # the other jobs of a sweep go on
            failed.append(" ".join(overrides))
        except Exception as error:
            if not multirun or isinstance(error, Interrupted):
                stopped.append(error)
                raise SystemExit(1) from error
            print(f"specauf: {' '.join(overrides)}: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
            failed.append(" ".join(overrides))
        except BaseException as error:  # past Hydra, which would wrap it in its own report
            stopped.append(error)
            raise SystemExit(1) from error

    options = [a for before, a in pairwise(["", *arguments]) if a.startswith("-") or before in WITH_VALUE]
    sys.argv = ["specauf train", *options, *_search(), *plain]  # Hydra reads overrides in one piece only
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here, instead of being printed over many lines
    try:
        hydra_main(version_base="1.3", config_path=str(folder("conf")), config_name="train")(job)()
    except SystemExit:
        if stopped:
            raise stopped[0] from None
        raise
    except InputError:
        raise
    except Exception as error:
        raise InputError(_explain(error, plain) or type(error).__name__) from error
    if failed:
        raise InputError(f"{len(failed)} jobs of the sweep failed: {'; '.join(failed)}")


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, as Hydra's own sweeper expands them and in its order (``-m``).

    Errors: InputError for a word that is not an override.
    """
    try:
        words = OverridesParser.create().parse_overrides(_plain_paths(overrides))
        (batch,) = BasicSweeper.split_arguments(words, max_batch_size=None)
    except (HydraException, ValueError, RecursionError) as error:
        raise InputError(f"not an override: {first_line(error)[:200]}") from error
    return [list(job) for job in batch]


OPTIONS = (*WITH_VALUE, "--multirun", "-m", "--help", "-h", "--hydra-help", "--resolve", "--info", "-i")
"""Options of Hydra that ``specauf train`` takes in addition to overrides."""


def _check_options(arguments: Sequence[str]) -> None:
    """InputError, in one line, for an option that Hydra would answer with its own help."""
    valid = ("--force", "--together", "--eval", *OPTIONS)
    for before, word in pairwise(["", *arguments]):
        if before in ("--cfg", "-c") and word not in ("job", "hydra", "all"):
            raise InputError(f"--cfg {word!r} is none of job, hydra, all")
        if word.split("=")[0] in ("--config-dir", "-cd"):  # of this command only: eval would not find the same files
            raise InputError(f"{word}: set {OWN}=DIR instead, so that every command finds your files")
        if word.startswith("-") and before not in WITH_VALUE and word.split("=")[0] not in OPTIONS:
            raise unknown_option(word, valid)
    if arguments and arguments[-1] in WITH_VALUE:
        raise InputError(
            f"{arguments[-1]} needs a value{': job, hydra or all' if arguments[-1] in WITH_VALUE[:2] else ''}"
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain content of a yaml file, interpolations resolved. Errors: InputError naming the file."""
    try:
        status = path.stat()
        values = copy.deepcopy(_parsed(path, status.st_mtime_ns, status.st_size, tuple(os.environ.items())))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {whole_text(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a yaml file here is a mapping of keys, see experiments/table2.yaml")
    return typing.cast(dict[str, Any], values)


@lru_cache(maxsize=256)
def _parsed(path: Path, _changed: int, _size: int, _environment: tuple[tuple[str, str], ...]) -> Any:
    """The content of a yaml file as long as neither the file nor the environment, which it may quote, changes."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def plain_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The plain nested values of a composed configuration, before they are checked."""
    values = OmegaConf.to_container(compose_raw(overrides), resolve=True)
    assert isinstance(values, dict)
    return typing.cast(dict[str, Any], values)


def build(raw: DictConfig) -> Config:
    """Typed, frozen configuration of a composed Hydra config. Errors: InputError naming the key."""
    try:
        values = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = sorted(OmegaConf.missing_keys(raw))
        if missing:
            raise InputError(f"{missing[0]} must be given, for example {missing[0]}=...") from error
        raise InputError(f"configuration: {first_line(error)}") from error
    assert isinstance(values, dict)
    if values["data_root"] is None and any(
        str(v).startswith("None/") for v in (values["benchmark_root"], values["data"]["path"])
    ):
        raise InputError(
            f"profile {values['profile']['name']} reads files: give data_root=DIR (or set SPECAUF_DATA), a folder "
            "with train/ and benchmarks/; `specauf data fetch --out DIR` makes one"
        )
    values.pop("recipe", None)  # what a profile gives by backbone, resolved in its trainer settings
    for backbone, keys in SIZED.items():  # a profile's sizes for these backbones, resolved in their yaml files
        given = values.pop(backbone, {})
        for key in given if isinstance(given, dict) else [given]:
            if key not in keys:
                valid = ", ".join(f"{backbone}.{k}" for k in keys)
                raise InputError(f"unknown setting {backbone}.{key}; valid: {valid}")
    values["target"] = identity.named(values["target"])
    config = settings.validated(Config, {**values, "resolved": settings.recorded(values)})
    check_fit(config.objective, config.backbone)
    return config


def check_fit(objective: ObjectiveConfig, backbone: BackboneConfig) -> None:
    """InputError for credits or a backbone that do not exist, and for an objective that the backbone has no use for."""
    known = groups()["backbone"]
    if backbone.like is not None and backbone.like not in known:
        raise InputError(
            f"backbone.like={backbone.like!r} is none of {', '.join(known)}.{nearest(backbone.like, known)}"
        )
    drafter = names.backbone(backbone)
    for branch, terms in objective.branches.items():
        for number, term in enumerate(terms):
            names.try_term(term, f"objective.{branch}" if len(terms) == 1 else f"objective.{branch}.{number}")
    kinds = {backbone.name, backbone.like}
    for name in objective.backbones:
        if name not in known:
            raise InputError(
                f"objective {objective.name!r} names backbones: {name!r} is none of {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    if not kinds & set(objective.backbones):
        fitting = [n for n in groups()["objective"] if kinds & set(_fits(n))]
        raise InputError(
            f"objective {objective.name!r} is for {', '.join(objective.backbones)}, not for {backbone.name}; "
            f"on {backbone.name}: {', '.join(fitting)}"
        )
    every = [term for terms in objective.branches.values() for term in terms]
    if not drafter.confident() and any(names.needs_confidence(names.loss(term)) for term in every):
        raise InputError(f"objective {objective.name!r} reads the drafter's confidence, and {backbone.name} has none")
    if "final" in drafter.branches and objective.final is None:
        raise InputError(f"objective {objective.name!r} has no terms for the branch final of {backbone.name}")


def _fits(objective: str) -> list[str]:
    """Backbones that an objective fits, by its own name or through an alias; none where its yaml cannot be read."""
    try:
        content = read_yaml(file_of("objective", objective))
    except InputError:
        return []
    return [str(name) for key in ("backbones", "aliases") for name in content.get(key) or ()]


def _is_simple_sweep(override: str) -> bool:
    value = override.partition("=")[2]
    return "," in value and not re.search(r"[(\[{'\"]", value)


def _explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """One line for a Hydra or OmegaConf error, with the nearest valid key where a key is unknown."""
    text = str(error)
    if "hydra/launcher/submitit" in text:
        return "this launcher needs the extra `cluster`: pip install 'specauf[cluster]'"
    if isinstance(error, yaml.YAMLError):  # what is wrong comes last
        return whole_text(error)
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if match and settings.find(match[1]) is not None:
        there = _beside(match[1], overrides)
        beside = f"; set there: {', '.join(there)}." if there else ""
        name = match[1].rpartition(".")[2]
        return (
            f"{match[1]} is not set in the chosen yaml; to add it, write +{match[1]}=...{beside}{nearest(name, there)}"
        )
    if match:
        keys = [setting.key for setting in settings.settings()]
        return (
            f"unknown setting {match[1]!r}.{nearest(match[1], [*keys, *groups()])} `specauf train --help` lists all "
            "settings"
        )
    return " ".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def _beside(key: str, overrides: Sequence[str]) -> list[str]:
    """The keys beside ``key`` in the configuration that the other ``overrides`` describe."""
    try:
        raw = compose_raw([word for word in overrides if key_of(word) != key])
    except InputError:
        return []
    section = OmegaConf.select(raw, key.rpartition(".")[0])
    return [str(name) for name in section] if isinstance(section, DictConfig) else []


def with_benchmarks(config: Config, names: str) -> Config:
    """``config`` restricted to the named benchmarks; names outside the profile's own are read from conf/benchmark."""

    if names == "all":
        return config
    chosen = {}
    for name in names.split(","):
        if not name:
            raise InputError(f"--benchmarks {names!r}: a name is empty; write them as gsm8k,mbpp")
        if name in chosen:
            raise InputError(f"--benchmarks {names}: {name} is named twice")
        if name == "all":
            raise InputError(f"--benchmarks {names}: all is used alone, it means every benchmark of the profile")
        valid = groups()["benchmark"]
        if name not in valid:
            raise InputError(
                f"unknown benchmark {name!r}; valid: all, "
                f"{', '.join(v for v in valid if v != 'all')}.{nearest(name, valid)}"
            )
        benchmarks = (config if name in config.benchmark else compose([f"benchmark={name}"])).benchmark
        chosen.update({name: benchmarks[name]} if name in benchmarks else benchmarks)
    resolved = {**config.resolved, "benchmark": {n: asdict(b) for n, b in chosen.items()}}
    return replace(config, benchmark=chosen, resolved=resolved)
