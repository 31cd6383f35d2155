"""The architecture as a test: imports point down only, and heavy or foreign libraries stay in their place."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "specauf_cli"
LEVELS = [
    {"__main__"},
    {"cli"},
    {"study", "engines", "doctor"},
    {"planning", "interchange"},
    {"session"},
    {"training", "evaluation", "reporting"},
    {"models"},
    {"data"},
    {"objectives"},
    {"config", "store", "runtime"},
    {"errors", "types", "__init__"},
]
"""Rooms from the front door down; those of a line may import each other."""

FILES = sorted(PACKAGE.rglob("*.py"))


def level(module: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if module in names)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "specauf_cli" and len(parts) > 1 and parts[1] != "__version__":
            assert level(own) <= level(parts[1]), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("hydra", {"compose.py"}),
        ("omegaconf", {"compose.py"}),
        ("transformers", {"models", "chat.py"}),
        ("datasets", {"data"}),
        ("pickle", set()),
    ],
)
def test_libraries_stay_in_their_place(library: str, allowed: set[str]) -> None:
    for path in FILES:
        if any(name.split(".")[0] == library for name in imports(path)):
            assert set(path.relative_to(PACKAGE).parts) & allowed, f"{path.relative_to(PACKAGE)} imports {library}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['specauf', '--help']\n"
        "from specauf_cli.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'hydra', 'datasets', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]"), out


PLACES = ("drafter", "records", "snapshots", "trajectories", "targets", "tables", "servers", "checkpoints", "aside")
FILES_OF_RUNS = ("log.jsonl", "run.json", "finished.json", "failed.json", "answers.jsonl")


def test_only_layout_knows_what_is_where() -> None:
    """No other file joins a path with a name that ``store/layout.py`` has a function for."""
    for path in FILES:
        if (
            path.name == "layout.py" or path.relative_to(PACKAGE).parts[0] == "doctor"
        ):  # its check writes its own folder
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
                joined = f"{path.relative_to(PACKAGE)}:{node.lineno}: / {node.right.value!r}"
                published = path.name == "render.py"  # results/records, which is no runs folder
                assert published or node.right.value not in (*PLACES, *FILES_OF_RUNS), joined


def test_checking_a_yaml_and_reading_records_import_no_torch() -> None:
    """ls, show, compare and render start in a second, and a page's yaml is checked as fast."""
    reading = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("reporting", "config", "store")]
    modules = [".".join(("specauf_cli", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in reading]
    code = (
        "import importlib, sys\n"
        f"for name in {[*modules, 'specauf_cli.study.render']}: importlib.import_module(name)\n"
        "from specauf_cli.config.specs import load_spec, shipped_specs\n"
        "for name in shipped_specs(): load_spec(name)\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
