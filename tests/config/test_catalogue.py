"""What is read of objectives, losses and credits without importing them is what they are."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specauf_cli.config import catalogue
from specauf_cli.config.catalogue import DISTRIBUTION, LABEL, PROGRESS, RANK, SECTIONS, Function
from specauf_cli.config.specs import ComparisonSpec, load_spec
from specauf_cli.errors import InputError
from specauf_cli.objectives import credits, losses
from specauf_cli.objectives.loss import NORMALIZE
from specauf_cli.objectives.terms import bind
from specauf_cli.types import BlockStats

ENTRIES = {entry.choice: entry for entry in catalogue.entries()}
KNOBS = {"gamma": 7, "alpha": 0.5, "k": 3, "beta": 0.6, "eps": 0.1, "until": 0.5}


OWN_CREDIT = '''
raise RuntimeError("listing runs no code")

def reach(stats, gold_rank, *, floor):
    """How likely it is that verification gets to a slot: c_i = max(floor, prod_{l<i} q_l). More text."""
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "objective").mkdir()
    monkeypatch.setenv("SPECAUF_CONF", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    catalogue.definitions.cache_clear()
    (tmp_path / "my_listed_credits.py").write_text(OWN_CREDIT)
    return tmp_path / "objective" / "reach.yaml"


@pytest.mark.parametrize("name", ENTRIES)
def test_every_shipped_objective_says_what_it_is_and_where_it_is_from(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.choice == entry.config.name
    assert entry.line
    assert entry.source
    assert entry.path.read_text().startswith(f"# {entry.command} · ")


@pytest.mark.parametrize("name", ENTRIES)
def test_what_an_objective_needs_is_what_its_terms_read(name: str) -> None:
    entry = ENTRIES[name]
    objective = bind(entry.config, "credit")
    assert (DISTRIBUTION in entry.needs) == objective.soft
    assert (RANK in entry.needs) == ("gold_rank" in objective.data)
    assert (PROGRESS in entry.needs) == ("progress" in objective.data)


def test_sections_are_the_groups_of_the_page_of_results() -> None:
    page = load_spec("objectives")
    assert isinstance(page, ComparisonSpec)
    assert {row.objective: row.group for row in page.rows} == {
        row.objective: ENTRIES[row.objective].section for row in page.rows
    }
    assert {entry.section for entry in ENTRIES.values()} == set(SECTIONS) - {"own"}


@pytest.mark.parametrize("function", catalogue.losses(), ids=lambda f: f.name)
def test_every_loss_has_formula_gradient_range_and_source(function: Function) -> None:
    _check_signature(function, losses)
    assert function.meaning
    assert function.formula
    assert {"Range", "Gradient", "Source"} <= set(function.parts)


@pytest.mark.parametrize("function", catalogue.credits(), ids=lambda f: f.name)
def test_every_credit_has_formula_and_source_and_depends_on_what_it_says(function: Function) -> None:
    _check_signature(function, credits)
    assert function.meaning
    assert function.formula.startswith("c_i = ")
    assert "Source" in function.parts
    reads = {word for word, changed in _changes(function).items() if changed}
    assert reads == set(function.depends_on) - {"nothing", "depth"}
    weights = _weights(function, STATS, 0.0)
    if not reads:
        assert function.depends_on == (("depth",) if weights.unique().numel() > 1 else ("nothing",))


def _check_signature(function: Function, module: object) -> None:
    parameters = inspect.signature(getattr(module, function.name)).parameters.values()
    assert function.knobs == tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    assert function.arguments == tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


STATS = BlockStats(
    correct=torch.ones(2, 4, dtype=torch.bool),
    gold_logprob=torch.full((2, 4), -0.5),
    mask=torch.ones(2, 4, dtype=torch.bool),
    gold_rank=torch.zeros(2, 4, dtype=torch.long),
    target_gold_logprob=torch.full((2, 4), -0.25),
    overlap=torch.full((2, 4), 0.8),
)


def _changes(function: Function) -> dict[str, bool]:
    """Whether the weights of a credit change with what they may depend on."""
    miss = torch.tensor([[True, False, True, True], [True, True, True, True]])
    other = {
        "first miss": replace(STATS, correct=miss, gold_rank=(~miss).long() * 9),
        "confidence": replace(STATS, gold_logprob=STATS.gold_logprob * 2),
        "target": replace(STATS, target_gold_logprob=STATS.gold_logprob, overlap=torch.full((2, 4), 0.3)),
    }
    before = _weights(function, STATS, 0.0)
    changed = {word: not torch.equal(_weights(function, stats, 0.0), before) for word, stats in other.items()}
    changed["progress"] = not torch.equal(_weights(function, STATS, 0.9), before)
    if "progress" in function.arguments:
        changed["first miss"] = not torch.equal(
            _weights(function, other["first miss"], 0.9), _weights(function, STATS, 0.9)
        )
    return changed


def _weights(function: Function, stats: BlockStats, progress: float) -> torch.Tensor:
    data = {name: progress if name == "progress" else getattr(stats, name) for name in function.arguments[1:]}
    knobs = {knob: KNOBS[knob] for knob in function.knobs}
    weights: torch.Tensor = getattr(credits, function.name)(stats, **data, **knobs)
    return weights


def test_every_normaliser_is_described() -> None:
    assert set(catalogue.normalisers()) == set(NORMALIZE)


def test_a_label_is_needed_only_where_it_is_read() -> None:
    assert ENTRIES["kl"].needs == (DISTRIBUTION,)
    assert ENTRIES["kl_auf"].needs == (LABEL, DISTRIBUTION)
    assert ENTRIES["top_k_auf"].needs == (LABEL, RANK)
    assert ENTRIES["pard2"].needs == (LABEL, DISTRIBUTION)


def test_a_term_in_one_line() -> None:
    assert [catalogue.term_text(term) for term in ENTRIES["dspark"].config.base] == [
        "0.1 x ce x decay(gamma=4)",
        "1.8 x tv x decay(gamma=4)",
    ]
    assert [catalogue.term_text(term) for term in ENTRIES["lk"].config.base] == [
        "lk(scale=1.0, slope=3.0) x decay(gamma=7)"
    ]


@pytest.mark.parametrize(
    ("docstring", "meaning", "formula"),
    [
        ("Uniform: c_i = 1. More.", "Uniform", "c_i = 1"),
        ("Control: without the breaker, c_i = 1[i < j*].", "Control: without the breaker", "c_i = 1[i < j*]"),
        ("c_i = max(0.1, q): how likely it is.", "how likely it is", "c_i = max(0.1, q)"),
        ("Cross-entropy: -log q(label). Needs the label.", "Cross-entropy", "-log q(label)"),
        ("Full credit on the first half.", "Full credit on the first half", ""),
        ("c_i = 1", "", "c_i = 1"),
        ("", "", ""),
    ],
)
def test_the_first_sentence_is_meaning_and_formula(own: Path, docstring: str, meaning: str, formula: str) -> None:
    (own.parent.parent / "my_listed_credits.py").write_text(f'def reach(stats):\n    """{docstring}"""\n')
    function = catalogue.credit("my_listed_credits.reach")
    assert (function.meaning, function.formula) == (meaning, formula)


def test_an_unknown_objective_is_one_line_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown objective 'dpase'.*Did you mean 'dpace'"):
        catalogue.entry("dpase")


def test_an_objective_of_ones_own_is_listed_without_running_its_code(own: Path) -> None:
    own.write_text(
        "# specauf train objective=reach\nname: reach\ntitle: reach\nbackbones: [dflash]\n"
        "base: {credit: my_listed_credits.reach, floor: 0.1}\n"
    )
    entry = next(e for e in catalogue.entries() if e.choice == "reach")
    assert (entry.section, entry.line, entry.source, entry.is_shipped) == ("own", "", "", False)
    assert entry.needs == (LABEL, RANK)
    assert entry.shown_path == str(own)
    function = catalogue.credit("my_listed_credits.reach")
    assert function.formula == "c_i = max(floor, prod_{l<i} q_l)"
    assert catalogue.term_text(entry.config.base[0]) == "ce x my_listed_credits.reach(floor=0.1)"


def test_an_objective_of_ones_own_may_build_on_another(own: Path) -> None:
    own.write_text("# specauf train objective=reach · AUF and a little decay\ndefaults: [auf, _self_]\nname: reach\n")
    entry = catalogue.entry("reach")
    assert (entry.config.title, entry.line, entry.section) == ("AUF", "AUF and a little decay", "first miss")


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("{credit: my_listed_credits.reech}", "no function 'reech' in my_listed_credits.*Did you mean 'reach'"),
        ("{credit: nowhere_to_be.reach}", "the source of nowhere_to_be cannot be read"),
        ("{credit: decai, gamma: 7}", "no function 'decai'.*Did you mean 'decay'"),
        ("{}", "names no credit"),
        ("${.nowhere}", "nowhere"),
        ("{credit: {auf}", "expected"),
        ("{credit: auf, weight: -1}", "weight=-1 "),
    ],
)
def test_a_yaml_that_is_wrong_is_one_line_that_names_it(own: Path, base: str, reason: str) -> None:
    own.write_text(f"name: reach\ntitle: reach\nbackbones: [dflash]\nbase: {base}\n")
    with pytest.raises(InputError, match=rf"(?s)reach\.yaml: .*{reason}"):
        catalogue.entry("reach")


def test_the_list_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from specauf_cli.config import catalogue\n"
        "from specauf_cli.reporting import gallery\n"
        "gallery.listing(catalogue.entries()), gallery.details(catalogue.entry('l2r'))\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
