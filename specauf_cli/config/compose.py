"""Overrides in, plain objects out: the only file that knows Hydra and OmegaConf."""

import inspect
import itertools
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specauf_cli.config import identity, limits
from specauf_cli.config.groups import OWN, check_choices, file_of, folder, groups, own_folder
from specauf_cli.config.schema import BackboneConfig, Config, ObjectiveConfig, typed
from specauf_cli.errors import InputError, first_line, nearest
from specauf_cli.runtime import ranks
from specauf_cli.types import BlockStats

WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
"""Options of Hydra whose next word is theirs and no override."""


def _search() -> list[str]:
    """The override by which Hydra looks into the user's own folder too."""
    place = own_folder()
    return [] if place is None else [f"hydra.searchpath=['file://{_quoted(str(place))}']"]


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that ``overrides`` describe. Errors: InputError, one line, with the nearest valid name."""
    own = next((o for o in overrides if o.lstrip("+~").startswith(("hydra.", "hydra/"))), None)
    if own is not None:
        raise InputError(f"{own!r}: Hydra's own settings are for specauf train -m; a table takes --launcher NAME")
    return _resolved(compose_raw(overrides), overrides)


def _resolved(raw: DictConfig, overrides: Sequence[str]) -> Config:
    """``raw``, or what its objective is called on its backbone: auf on domino is b_auf."""
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
    outer = Singleton.get_state()  # a job of hydra.main composes too, and Hydra knows one configuration at a time
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(config_dir=str(folder("conf")), version_base="1.3"):
            return hydra_compose("train", overrides=[*_search(), *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(error, overrides)) from error
    finally:
        Singleton.set_state(outer)


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Key and plain value of every override, as Hydra's own grammar reads them (None for a deletion).

    Errors: InputError for a word that is no override.
    """
    try:
        found = OverridesParser.create().parse_overrides(_plain_paths(overrides))
        return [(o.key_or_group, None if o.is_delete() else o.value()) for o in found]
    except (HydraException, ValueError, RecursionError) as error:
        raise InputError(f"not an override: {first_line(error)[:200]}") from error


PATHS = ("runs", "data_root", "benchmark_root", "data.path", "target.path", "init")
"""Keys that hold a file's or folder's name, which is taken as it is typed."""

LITERAL = re.compile(r"[+-]?[\d._]+(e[+-]?\d+)?|true|false|nan|[+-]?inf", re.IGNORECASE)
"""What Hydra's grammar would not read as text."""


def _plain_paths(overrides: Sequence[str]) -> list[str]:
    """``overrides`` with ``~`` and special characters in paths as Hydra's grammar wants them: quoted."""
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if (
            equals
            and key.lstrip("+") in PATHS
            and (not re.fullmatch(r"[\w./:@%-]*|'.*'|\".*\"|.*\$\{.*", value, re.DOTALL) or LITERAL.fullmatch(value))
        ):
            override = f"{key}='{_quoted(os.path.expanduser(value))}'"
        found.append(override)
    return found


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


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
        page = next((o for o in plain if o.startswith("experiment=")), None)
        if page and not {"-m", "--multirun", "--cfg", "-c"} & set(arguments):
            raise InputError(f"{page!r} names several drafters; add -m to train each of them: specauf train -m {page}")

    failed: list[str] = []
    stopped: list[BaseException] = []

    def job(raw: DictConfig) -> None:
        try:
            overrides = list(HydraConfig.get().overrides.task)
            multirun = HydraConfig.get().mode is RunMode.MULTIRUN
            elsewhere = multirun and "BasicLauncher" not in HydraConfig.get().launcher._target_
        except OmegaConfBaseException as error:  # an interpolation that leads nowhere
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
            if not multirun or type(error).__name__ == "Interrupted":
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


def sweep(overrides: Sequence[str]) -> list[tuple[Config, list[str]]]:
    """Every combination of comma-separated values: its configuration and its own overrides, in the order of ``-m``."""
    choices = []
    for override in overrides:
        if override in ("-m", "--multirun"):
            continue
        if override.startswith("-"):
            raise InputError(f"--together takes overrides only, not {override!r}")
        if override.startswith("experiment="):
            raise InputError(
                f"{override!r} is for a sweep of Hydra's (-m); --together takes objective=auf,decay and the like"
            )
        key, _, values = override.partition("=")
        choices.append([f"{key}={v}" for v in values.split(",")] if _is_simple_sweep(override) else [override])
    return [(compose(list(cell)), list(cell)) for cell in itertools.product(*choices)]


OPTIONS = (*WITH_VALUE, "--multirun", "-m", "--help", "-h", "--hydra-help", "--resolve", "--info", "-i")
"""What ``specauf train`` takes beside overrides: options of Hydra."""


def _check_options(arguments: Sequence[str]) -> None:
    """InputError, in one line, for an option that Hydra would answer with its own help."""
    valid = ("--force", "--together", "--eval", *OPTIONS)
    for before, word in pairwise(["", *arguments]):
        if before in ("--cfg", "-c") and word not in ("job", "hydra", "all"):
            raise InputError(f"--cfg {word!r} is none of job, hydra, all")
        if word.split("=")[0] in ("--config-dir", "-cd"):  # of this command only: eval would not find the same files
            raise InputError(f"{word}: set {OWN}=DIR instead, so that every command finds your files")
        if word.startswith("-") and before not in WITH_VALUE and word.split("=")[0] not in OPTIONS:
            raise InputError(f"no option {word!r}; valid: {', '.join(valid)}.{nearest(word, valid)}")
    if arguments and arguments[-1] in WITH_VALUE:
        raise InputError(
            f"{arguments[-1]} needs a value{': job, hydra or all' if arguments[-1] in WITH_VALUE[:2] else ''}"
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain content of a yaml file, interpolations resolved. Errors: InputError naming the file."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a yaml file here is a mapping of keys, see experiments/table2.yaml")
    return typing.cast(dict[str, Any], values)


def build(raw: DictConfig) -> Config:
    """Typed, frozen configuration of a composed Hydra config. Errors: InputError naming the key."""
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        raise InputError(f"{missing[0]} must be given, for example {missing[0]}=...")
    try:
        values = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(f"configuration: {first_line(error)}") from error
    assert isinstance(values, dict)
    if values["data_root"] is None and any(
        str(v).startswith("None/") for v in (values["benchmark_root"], values["data"]["path"])
    ):
        raise InputError(
            f"profile {values['profile']['name']} reads files: give data_root=DIR (or set SPECAUF_DATA), a folder with "
            "train/ and benchmarks/; `specauf data fetch --out DIR` makes one"
        )
    values.pop("experiment", None)
    values.pop("data_root", None)
    values.pop("recipe", None)  # what a profile gives by backbone, resolved in its trainer settings
    domino = values.pop("domino", {})  # a profile's sizes for conf/backbone/domino.yaml, where they are resolved
    for key in domino if isinstance(domino, dict) else [domino]:
        if key not in ("gru_hidden_dim", "emb_dim"):
            raise InputError(f"unknown setting domino.{key}; valid: domino.gru_hidden_dim, domino.emb_dim")
    objective, backbone = dict(values["objective"]), dict(values["backbone"])
    for branch in ("base", "final"):
        if objective.get(branch) is not None:
            objective[branch] = _credit(raw.objective[branch], f"objective.{branch}")
        elif branch == "base":
            raise InputError(
                "objective.base is empty; it names the credit of the base branch, see conf/objective/auf.yaml"
            )
    backbone["model"] = _partial(raw.backbone.model, "backbone.model")
    if not all(hasattr(getattr(backbone["model"], "func", backbone["model"]), a) for a in ("first", "branches")):
        raise InputError("backbone.model._target_ is no drafter's class, see conf/backbone/dflash.yaml")
    values["target"] = identity.named(values["target"])
    plain = {**values, "objective": objective, "backbone": backbone, "resolved": identity.resolved(values)}
    config = typing.cast(Config, typed(Config, plain, ""))
    check_fit(config.objective, config.backbone)
    limits.check(config)
    return config


def check_fit(objective: ObjectiveConfig, backbone: BackboneConfig) -> None:
    """InputError for an objective that the backbone has no use for, naming those that fit."""
    known = groups()["backbone"]
    if backbone.like is not None and backbone.like not in known:
        raise InputError(
            f"backbone.like={backbone.like!r} is none of {', '.join(known)}.{nearest(backbone.like, known)}"
        )
    kind = backbone.like or backbone.name
    if kind not in objective.backbones:
        fitting = [n for n in groups()["objective"] if kind in _fits(n)]
        raise InputError(
            f"objective {objective.name!r} is for {', '.join(objective.backbones)}, not for {backbone.name}; "
            f"on {backbone.name}: {', '.join(fitting)}"
        )
    if "final" in backbone.drafter.branches and objective.final is None:
        raise InputError(f"objective {objective.name!r} names no credit for the branch final of {backbone.name}")


def _fits(objective: str) -> list[str]:
    """Backbones that an objective fits, by its own name or through an alias."""
    found = OmegaConf.load(file_of("objective", objective))
    return [*found.backbones, *found.get("aliases", {})]


def _partial(node: DictConfig, where: str) -> Any:
    """The function or class a yaml names, its knobs bound and checked against the keyword-only arguments."""
    if not isinstance(node, DictConfig) or not node.get("_target_") or node.get("_partial_") is not True:
        raise InputError(f"{where} needs _target_ (a function or class, with its module) and _partial_: true")
    try:
        made = instantiate(node)
        parameters = inspect.signature(getattr(made, "func", made)).parameters.values()
    except (HydraException, TypeError, ValueError) as error:
        raise InputError(f"{where}: {first_line(error)}") from error
    knobs = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    given = getattr(made, "keywords", {})
    for knob, value in given.items():
        if not isinstance(value, int | float | str):
            raise InputError(f"{where}.{knob}={value} must be a single value")
    for knob in sorted(set(knobs) ^ set(given)):
        if knob in knobs:
            raise InputError(f"{where}.{knob} is missing; its knobs are: {', '.join(knobs)}")
        raise InputError(
            f"{where}.{knob} is not one of its knobs: {', '.join(knobs) or 'it has none'}.{nearest(knob, knobs)}"
        )
    return made


def _credit(node: DictConfig, where: str) -> Any:
    """A credit, tried on one block, so that a function of another kind is found out before anything is trained."""
    credit = _partial(node, where)
    yes = torch.ones(1, 2, dtype=torch.bool)
    try:
        found = credit(BlockStats(correct=yes, gold_logprob=torch.zeros(1, 2), mask=yes))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        raise InputError(f"{where}: {node._target_} is no credit, it fails on a block: {error}") from error
    if not isinstance(found, torch.Tensor) or found.shape != yes.shape:
        raise InputError(
            f"{where}: {node._target_} is no credit: it must give one weight for each block and slot, [N, K]"
        )
    return credit


def _is_simple_sweep(override: str) -> bool:
    value = override.partition("=")[2]
    return "," in value and not re.search(r"[(\[{'\"]", value)


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line for a Hydra or OmegaConf error, with the nearest valid key where a key is unknown."""
    text = str(error)
    if "hydra/launcher/submitit" in text:
        return "this launcher needs the extra `cluster`: pip install 'specauf[cluster]'"
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if match:
        known = groups()
        choices = [o for o in overrides if o.lstrip("+~").split("=")[0] in known]
        with initialize_config_dir(config_dir=str(folder("conf")), version_base="1.3"):
            keys = _keys(OmegaConf.to_container(hydra_compose("train", overrides=[*_search(), *choices])))
        return (
            f"unknown setting {match[1]!r}.{nearest(match[1], [*keys, *known])} `specauf train --cfg job` prints "
            "all settings"
        )
    return " ".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def _keys(values: Any, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    return [k for name, value in values.items() for k in _keys(value, f"{prefix}.{name}" if prefix else str(name))]


def with_benchmarks(config: Config, names: str) -> Config:
    """``config`` restricted to the named benchmarks; names outside the profile's own are read from conf/benchmark."""

    if names == "all":
        return config
    chosen = {}
    for name in names.split(","):
        if name in chosen:
            raise InputError(f"--benchmarks {names}: {name} is there twice")
        if name == "all":
            raise InputError(f"--benchmarks {names}: all stands alone, it means every benchmark of the profile")
        valid = groups()["benchmark"]
        if name not in valid:
            raise InputError(
                f"unknown benchmark {name!r}; valid: all, "
                f"{', '.join(v for v in valid if v != 'all')}.{nearest(name, valid)}"
            )
        found = config if name in config.benchmark else compose([f"benchmark={name}"])
        chosen.update({name: found.benchmark[name]} if name in found.benchmark else found.benchmark)
    resolved = {**config.resolved, "benchmark": {n: asdict(b) for n, b in chosen.items()}}
    return replace(config, benchmark=chosen, resolved=resolved)
