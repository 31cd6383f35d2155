"""Every yaml composes, order of overrides, and one clear line for whatever is wrong."""

from pathlib import Path

import pytest

from specauf_cli.config import compose, groups, specs
from specauf_cli.config.specs import TableSpec
from specauf_cli.errors import InputError

GROUPS = groups.groups()
REAL = ["data_root=DIR"]


@pytest.mark.parametrize("choice", [(g, c) for g, choices in GROUPS.items() for c in choices], ids="/".join)
def test_every_yaml_composes(choice: tuple[str, str]) -> None:
    group, name = choice
    extra = ["data.path=FILE"] if choice == ("data", "jsonl") else []
    extra += ["target.name=hf"] if name == "hf" else []
    extra += [f"backbone={specs.objective_yaml(name)['backbones'][0]}"] if group == "objective" else []
    config = compose.compose([f"{group}={name}", *REAL, *extra])
    if group in ("target", "backbone", "objective", "data", "profile"):
        assert getattr(config, group).name == name


TAUS = [n for n in specs.shipped_specs() if isinstance(specs.load_spec(n), TableSpec)]


@pytest.mark.parametrize("name", TAUS)
def test_every_experiment_reads_and_its_objectives_exist(name: str) -> None:
    found = specs.load_spec(name)
    assert {row.objective for row in found.rows} <= set(GROUPS["objective"])
    assert found.backbone in GROUPS["backbone"]
    assert found.baseline in {row.objective for row in found.rows}
    width = len(found.columns) + 1
    assert all(len(v) == width for block in found.paper.values.values() for v in block.values())


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "objective: b_auf, title: B-AUF}",
            "objective: auf, title: B-AUF}",
            "'auf' is called b_auf on domino; write objective: b_auf",
        ),
        ("margin: 0.1", "margin: .inf", "margin=inf must be"),
        ("backbone: domino", "backbone: dflash", "'b_auf' does not fit dflash"),
    ],
)
def test_an_experiment_that_cannot_be_shown_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (groups.folder("experiments") / "table4.yaml").read_text()
    assert old in text
    path = tmp_path / "table4.yaml"
    path.write_text(text.replace(old, new).replace("b_auf: [", "auf: [" if "auf," in new else "b_auf: ["))
    with pytest.raises(InputError, match=says):
        specs.load_spec(str(path))


def test_paper_averages_follow_from_the_cells_within_rounding() -> None:
    assert TAUS == ["table2", "table4"]
    for name in TAUS:
        for block in specs.load_spec(name).paper.values.values():
            for *cells, average in block.values():
                assert abs(sum(cells) / len(cells) - average) <= 0.011


@pytest.mark.parametrize(("asked", "meant"), [("auf", "b_auf"), ("auf_decay", "b_auf_decay"), ("decay", "decay")])
def test_an_objective_has_its_two_branch_name_on_domino(asked: str, meant: str) -> None:
    found = compose.compose(
        ["backbone=domino", f"objective={asked}", "objective.base.gamma=4"][: 2 + ("decay" in asked)]
    )
    direct = compose.compose(
        ["backbone=domino", f"objective={meant}", "objective.base.gamma=4"][: 2 + ("decay" in asked)]
    )
    assert found.objective.name == meant
    assert found.resolved == direct.resolved
    assert found.objective.final is not None


def test_an_objective_for_another_backbone_is_refused_with_those_that_fit() -> None:
    with pytest.raises(
        InputError, match=r"'s_auf' is for domino, not for dflash; on dflash: auf, auf_decay, .*decay, .*full_ce"
    ):
        compose.compose(["objective=s_auf"])
    with pytest.raises(InputError, match=r"no terms for the branch final of domino"):
        compose.compose(["objective=decay", "backbone=domino", "objective.final=null"])
    with pytest.raises(InputError, match=r"final_reads='last' is none of base, final"):
        compose.compose(["objective=decay", "backbone=domino", "objective.final_reads=last"])


def test_sizes_of_the_correction_follow_the_profile_and_can_be_overridden() -> None:
    knobs = [
        compose.compose(["backbone=domino", *o]).backbone.knobs
        for o in ([], ["profile=smoke"], ["backbone.knobs.emb_dim=7"])
    ]
    assert [k["emb_dim"] for k in knobs] == [32, 8, 7]
    assert [k["gru_hidden_dim"] for k in knobs] == [64, 16, 64]
    with pytest.raises(InputError, match=r"backbone.knobs.rank is not one of its knobs"):
        compose.compose(["backbone=domino", "+backbone.knobs.rank=3"])


def test_command_line_beats_profile_beats_groups() -> None:
    assert compose.compose(["profile=laptop"]).backbone.layers != compose.compose(["profile=smoke"]).backbone.layers
    assert compose.compose(["profile=smoke", "backbone.layers=3"]).backbone.layers == 3
    assert compose.compose(["profile=cpu_real", *REAL, "target=tiny"]).target.name == "tiny"


def test_machine_settings_stay_out_of_the_resolved_configuration() -> None:
    config = compose.compose(["profile=cpu_real", "data_root=/somewhere", "threads=1", "device=cpu", "runs=elsewhere"])
    assert "/somewhere" not in repr(config.resolved)
    assert "elsewhere" not in repr(config.resolved)
    assert config.data.path == "/somewhere/train"


def test_credits_are_bound_with_their_knobs() -> None:
    (term,) = compose.compose(["objective=auf_decay", "objective.base.gamma=4"]).objective.base
    assert (term.credit, term.knobs) == ("auf_decay", {"gamma": 4})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["objective=aufdecay"], ["unknown objective 'aufdecay'", "full_ce", "Did you mean 'auf_decay'?"]),
        (["backbone=dflsh"], ["unknown backbone", "Did you mean 'dflash'?"]),
        (["profile=lapto"], ["unknown profile", "Did you mean 'laptop'?"]),
        (["benchmark=gsm8"], ["unknown benchmark", "Did you mean 'gsm8k'?"]),
        (["trainer.stepz=5"], ["unknown setting 'trainer.stepz'", "Did you mean 'trainer.steps'?"]),
        (["sed=5"], ["unknown setting 'sed'", "Did you mean 'seed'?"]),
        (["trainer.steps=many"], ["trainer.steps='many' is not valid", "whole number"]),
        (["trainer.lr=high"], ["trainer.lr='high'"]),
        (["objective"], ["'objective' is not an override"]),
        (["objective.base.gamma=3"], ["gamma", "objective.base"]),
        (["target.taps=many"], ["target.taps='many'", "list"]),
        (["data=jsonl"], ["data.path must be given, for example data.path=..."]),
        (["trainer.lr=???", "evaluation.audit=???"], ["evaluation.audit must be given"]),
        (["trainer.lr=${seed_}"], ["configuration: Interpolation key 'seed_' not found"]),
        (["=5"], ["not an override"]),
    ],
)
def test_bad_overrides_are_one_line_with_the_nearest_name(overrides: list[str], says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        compose.compose(overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in says), text


def test_unknown_experiment_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="table2"):
        specs.load_spec("tabel2")


def test_broken_experiment_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        specs.load_spec(str(path))
    path.write_text("name: mine\nrows: []\n")
    with pytest.raises(InputError, match="is missing"):
        specs.load_spec(str(path))


def test_a_hub_name_on_a_target_that_is_another_model_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"target\.name=Qwen/Qwen3-1\.7B, but this target is Qwen/Qwen3-4B; give target=hf"
    ):
        compose.compose(["profile=single_gpu", "target.name=Qwen/Qwen3-1.7B"])
    assert compose.compose(["target=hf", "target.name=Qwen/Qwen3-1.7B"]).target.path == "Qwen/Qwen3-1.7B"
    assert compose.compose(["target=hf", "target.path=/x/y", "target.name=ORG/NAME"]).target.path == "/x/y"


@pytest.mark.parametrize("folder", ["2024", "1e5", "true", "nan", "a b", "x,y", "null"])
def test_a_path_is_taken_as_it_is_typed(folder: str) -> None:
    if folder == "null":
        assert compose.compose(["benchmark_root=null"]).benchmark_root is None
        return
    config = compose.compose(
        [f"runs={folder}", "data=jsonl", f"data.path={folder}", "target=hf", f"target.path={folder}"]
    )
    assert (config.runs, config.data.path, config.target.path) == (folder, folder, folder)


def test_a_sweep_is_expanded_as_hydras_own_sweeper_does() -> None:
    words = ["objective=auf,decay", "seed=range(0,2)", "data.path='a,b'"]
    assert [j[:2] for j in compose.sweep(words)] == [
        [f"objective={o}", f"seed={s}"] for o in ("auf", "decay") for s in (0, 1)
    ]
    with pytest.raises(InputError, match="not an override"):
        compose.sweep(["objective=auf,", "seed={"])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: table2", "name: table2\nkind: []", r"kind \[\] is none of"),
        ('"0":', '"0.0":', "a temperature is written as in"),
        ("margin: 0.1", f"margin: {'9' * 400}", "margin=9999"),
    ],
)
def test_values_that_no_page_can_use_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (groups.folder("experiments") / "table2.yaml").read_text()
    assert old in text
    path = tmp_path / "table2.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=says):
        specs.load_spec(str(path))


def test_a_page_of_variants_names_the_papers_rows_right(tmp_path: Path) -> None:
    text = (groups.folder("experiments") / "table3.yaml").read_text()
    path = tmp_path / "table3.yaml"
    path.write_text(text.replace("\n  s_auf:", "\n  s_auff:"))
    with pytest.raises(InputError, match=r"objective of paper 's_auff' is none of .* Did you mean 's_auf'"):
        specs.load_spec(str(path))


def test_hydras_own_settings_and_pages_are_for_its_sweeps() -> None:
    with pytest.raises(InputError, match=r"a table takes --launcher NAME"):
        compose.compose(["profile=smoke", "hydra/launcher=slurm"])
