"""What a table shows: an experiment's yaml in, a checked ``Experiment`` out."""

import math
import re
from pathlib import Path
from typing import Any, cast

from specauf_cli.choices import file_of, folder, groups
from specauf_cli.compose import read_yaml
from specauf_cli.evaluation.metrics import check_definition
from specauf_cli.schema import InputError, nearest
from specauf_cli.settings import Experiment, Variants, typed


def load(name: str) -> Experiment | Variants:
    """An experiment by file path, or by its name among the shipped ones. Errors: InputError."""
    known = {f.stem: f for f in sorted(folder("experiments").glob("*.yaml"))}
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else known.get(name)
    if path is None or not path.is_file():
        raise InputError(f"no experiment {name!r}; shipped: {', '.join(known)}.{nearest(Path(name).stem, known)}")
    values = read_yaml(path)
    kinds = {"tau": Experiment, "variants": Variants}
    kind = values.pop("kind", "tau")
    if kind not in kinds:
        raise InputError(f"{path}: kind {kind!r} is none of {', '.join(kinds)}.{nearest(str(kind), kinds)}")
    try:
        found = cast(Experiment | Variants, typed(kinds[kind], values, ""))
        if isinstance(found, Experiment):
            check_definition(found.definition)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if found.name != path.stem:
        raise InputError(
            f"{path}: name: {found.name} must be the name of the file, {path.stem}; tables are written under it"
        )
    names = [row.objective for row in found.rows]
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated or not names:
        raise InputError(f"{path}: {f'objective {repeated!r} has two rows' if repeated else 'it has no rows'}")
    choices = groups()
    named = [
        ("backbone", found.backbone, choices["backbone"]),
        *(("objective", n, choices["objective"]) for n in names),
    ]
    if isinstance(found, Experiment):
        columns = [b for b in choices["benchmark"] if b != "all" and not b.startswith("offline")]  # as the paper's
        named += [("column", c, columns) for c in found.columns]
        named += [("objective of paper.values", o, names) for block in found.paper.values.values() for o in block]
        named += [("baseline", found.baseline, names)]
    for what, word, valid in named:
        if word not in valid:
            raise InputError(f"{path}: {what} {word!r} is none of {', '.join(valid)}.{nearest(word, valid)}")
    for name_ in names:
        _check_row(name_, found.backbone, str(path))
    if isinstance(found, Experiment):
        _check_cells(found, str(path))
    return found


def _check_row(objective: str, backbone: str, path: str) -> None:
    """InputError for a row whose records would carry another name, or that the backbone has no use for."""
    content = objective_yaml(objective)
    kind = read_yaml(file_of("backbone", backbone)).get("like") or backbone
    if kind not in content["backbones"]:
        alias = content.get("aliases", {}).get(kind)
        means = f"is called {alias} on {backbone}; write objective: {alias}" if alias else f"does not fit {backbone}"
        raise InputError(f"{path}: objective {objective!r} {means}")


def _check_cells(found: Experiment, path: str) -> None:
    for temperature, block in found.paper.values.items():
        if not re.fullmatch(r"\d+(\.\d+)?", temperature):
            raise InputError(f"{path}: paper.values.{temperature}: a temperature is a number, for example '0'")
        for name, cells in block.items():
            if not all(0 <= c < math.inf for c in cells):
                raise InputError(f"{path}: paper.values.{temperature}.{name} holds a number that no tau can be")
            if len(cells) != len(found.columns) + 1:
                raise InputError(
                    f"{path}: paper.values.{temperature}.{name} has {len(cells)} numbers; {len(found.columns) + 1} are needed (columns and average)"
                )
    if not 0 < found.margin < math.inf:
        raise InputError(f"{path}: margin={found.margin} must be > 0 tokens")


def objective_yaml(name: str) -> dict[str, Any]:
    """The plain content of ``conf/objective/NAME.yaml``."""
    return read_yaml(file_of("objective", name))


def shipped() -> list[str]:
    """Names of the experiments that come with the tool."""
    return sorted(f.stem for f in folder("experiments").glob("*.yaml"))
