"""The commands as a user types them, end to end on the smoke profile, and what they say to bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import ENV, ROOT, specauf
from specauf_cli.store.files import lock
from specauf_cli.store.records import load_record
from specauf_cli.store.trust import configs
from specauf_cli.study import publish


def test_table_trains_measures_prints_and_writes(table: tuple[Path, str]) -> None:
    folder, printed = table
    for method in ("full-CE", "decay", "AUF+decay", "AUF"):
        assert re.search(rf"\| [01] \| {re.escape(method)} \| ours \| \S*1\.\d\d", printed), printed
    assert "2.29" in printed
    written = (folder / "runs" / "tables" / "smoke-table2.md").read_text()
    assert written.strip() in printed
    audit = re.search(r"live\): (\d+) of (\d+) outputs .*?, (\d+) of", written)
    assert audit
    assert audit[1] == audit[2] == audit[3], "every live output and round must equal the target's own and the replay's"


def test_every_objective_starts_from_the_same_weights_and_sees_the_same_data(table: tuple[Path, str]) -> None:
    folder, _ = table
    records = json.loads((folder / "runs" / "tables" / "smoke.json").read_text())["dflash"]["records"]
    folders = [folder / "runs" / name.split("/")[0] for name in records]
    first = [json.loads((f / "log.jsonl").read_text().splitlines()[0])["accept_length"] for f in folders]
    assert len(first) == 4
    assert all(1 <= length < 2 for length in first)
    inputs = [json.loads((f / "run.json").read_text())["inputs"] for f in folders]
    assert all(i == inputs[0] for i in inputs)


def test_a_second_call_trains_nothing(table: tuple[Path, str]) -> None:
    folder, printed = table
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/log.jsonl")}
    again = specauf(folder, "table", "table2", "profile=smoke")
    assert again.stdout == printed
    assert again.stderr.count("measured already") == 4
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/log.jsonl")}


def test_eval_measures_the_latest_run_and_some_benchmarks(table: tuple[Path, str]) -> None:
    folder, _ = table
    done = specauf(folder, "eval", "--benchmarks", "offline_algebra,offline_chat", "evaluation.max_new_tokens=8")
    assert "Algebra (offline)" in done.stdout
    assert "Functions (offline)" not in done.stdout
    assert "block-mask accuracy" in done.stdout


def test_answers_drawn_by_gumbel_noise_are_other_ones_and_decoded_live_the_same(table: tuple[Path, str]) -> None:
    folder, _ = table
    specauf(folder, "eval", "--benchmarks", "offline_chat", "evaluation.audit=null", "evaluation.draw=gumbel")
    newest = max(folder.glob("runs/*/records/*.json"), key=lambda path: path.stat().st_mtime_ns)
    greedy, result = load_record(newest).benchmarks
    assert (greedy.temperature, result.temperature) == (0.0, 1.0)
    assert result.audit.requests == result.audit.identical == result.audit.same_rounds > 1
    table_own = next(r for r in map(load_record, newest.parent.glob("*.json")) if len(r.benchmarks) == 12)
    (first,) = (b for b in table_own.benchmarks if (b.benchmark, b.temperature) == (result.benchmark, 1.0))
    assert [trace.accepted for trace in result.traces] != [trace.accepted for trace in first.traces]


def test_decode_mode_gives_the_rounds_of_replay(table: tuple[Path, str]) -> None:
    folder, _ = table
    run = next(folder.glob("runs/dflash-auf-*")).name
    chosen = ("offline_chat", "offline_algebra")
    specauf(
        folder, "eval", "--run", run, "--benchmarks", ",".join(chosen), "evaluation.mode=decode", "evaluation.audit=0"
    )
    records = [json.loads(p.read_text()) for p in (folder / "runs" / run / "records").glob("*.json")]
    (lived,) = [r for r in records if r["config"]["evaluation"]["mode"] == "decode"]
    replayed = next(r for r in records if r["config"]["evaluation"]["mode"] == "replay" and len(r["benchmarks"]) == 12)
    expected = {(b["benchmark"], b["temperature"]): b["traces"] for b in replayed["benchmarks"]}
    assert len(lived["benchmarks"]) == 4
    assert all(b["traces"] == expected[b["benchmark"], b["temperature"]] for b in lived["benchmarks"])


def test_compare_pairs_runs_and_audit_finds_every_output_exact(table: tuple[Path, str]) -> None:
    folder, _ = table
    one, other = (next(folder.glob(f"runs/dflash-{name}-tiny-*")).name for name in ("decay", "auf_decay"))
    compared = specauf(folder, "compare", one, other, "--definition", "pooled").stdout
    assert compared.startswith(f"baseline: {one}")
    assert compared.count("T=0") == compared.count("T=1") == 7
    report = specauf(folder, "audit", "--run", one, "--benchmarks", "offline_algebra").stdout
    assert "fp32: 2 of 2 outputs equal the target's own greedy output" in report
    assert "bf16:" in report


def test_cross_check_and_every_start_are_printed(table: tuple[Path, str]) -> None:
    folder, _ = table
    run = next(folder.glob("runs/dflash-decay-tiny-*")).name
    words = ("eval", "--run", run, "--benchmarks", "offline_chat", "--cross-check", "3", "--all-starts")
    printed = specauf(folder, *words).stdout
    assert "all starts: mean accepted" in printed
    assert "audit: 6 of 6 live outputs equal the target's own token for token, 6 have the recorded rounds" in printed


def test_record_names_no_path_of_this_machine(table: tuple[Path, str]) -> None:
    folder, _ = table
    for path in folder.glob("runs/*/records/*.json"):
        text = path.read_text()
        assert str(folder) not in text
        assert str(ROOT) not in text
        assert str(Path.home()) + "/" not in text


def test_ctrl_c_saves_and_says_how_to_continue(table: tuple[Path, str]) -> None:
    folder, _ = table
    words = ["train", "objective=decay", "profile=smoke", "trainer.steps=4000", "trainer.save_every=4000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "specauf_cli", *words], cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True
    )
    log = None
    for _ in range(600):
        time.sleep(0.1)
        log = next((p for p in folder.glob("runs/dflash-decay-*/log.jsonl") if _steps(p) == 4000), None)
        if log is not None and log.read_text():
            break
    assert log is not None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Continue with: specauf train objective=decay profile=smoke" in said
    assert list(log.parent.glob("checkpoints/step-*"))
    assert not (log.parent / "finished.json").exists()
    unfinished = specauf(folder, "eval", "--run", log.parent.name, check=False)
    assert unfinished.returncode != 0
    assert "not finished" in unfinished.stderr


def _steps(log: Path) -> int:
    about = log.parent / "run.json"
    return int(json.loads(about.read_text())["config"]["trainer"]["steps"]) if about.is_file() else 0


def test_sweep_runs_every_job_and_reports_the_failing_one(table: tuple[Path, str]) -> None:
    folder, _ = table
    done = specauf(
        folder,
        "train",
        "-m",
        "profile=smoke",
        "objective=auf,decay",
        "trainer.steps=2",
        "backbone.proposals=15,99",
        check=False,
    )
    assert done.returncode != 0
    assert "backbone.proposals=99 is out of range" in done.stderr
    assert "Traceback" not in done.stderr
    assert sum(_steps(p) == 2 for p in folder.glob("runs/*/log.jsonl")) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "objective=afu"], "Did you mean 'auf'?"),
        (["train", "profile=smoke", "backbone.block_size=1"], "block_size=1 must be at least 2"),
        (["train", "profile=smoke", "target.taps=[3]"], "taps the last layer"),
        (["train", "profile=smoke", "target.taps=[0,7]"], "layer 7 is out of range"),
        (["train", "profile=smoke", "trainer.epochs=1"], "set exactly one of trainer.steps"),
        (["train", "profile=smoke", "trainer.normalize=blok"], "Did you mean 'blocks'?"),
        (
            ["train", "profile=smoke", "trainer.batch_size=6", "trainer.micro_batch=4"],
            "multiple of trainer.micro_batch",
        ),
        (["train", "profile=smoke", "device=tpu"], "device='tpu' cannot be used"),
        (["train", "profile=smoke", "target.path=nowhere"], "'nowhere' cannot be loaded"),
        (["train", "data=jsonl", "data.path=nothing.jsonl"], "no such file or folder"),
        (["train", "profile=cpu_real"], "give data_root=DIR"),
        (["eval", "--run", "nope"], "no run 'nope'"),
        (["eval", "--benchmarks", "offline_algebr"], "Did you mean 'offline_algebra'?"),
        (["eval", "--definition", "engin"], "Did you mean 'engine'?"),
        (["eval", "evaluation.drafts=sampled"], "only greedy drafts can"),
        (["compare", "one"], "compare needs two runs or more"),
        (["audit", "--run", "nope"], "no run 'nope'"),
        (["eval", "evaluation.mode=live"], "evaluation.mode='live' is none of"),
        (["eval", "trainer.lr=1"], "was trained with another trainer than these settings say"),
        (["eval", "profile=laptop"], "was trained with another target, backbone, data, trainer, profile"),
        (["table", "table2", "backbone=domino"], "a table chooses its own backbone"),
        (["eval", "benchmark_root=runs"], "every chosen benchmark is generated"),
        (["table", "tabel2"], "Did you mean 'table2'?"),
        (["table", "--seeds", "one"], "give different integers separated by commas"),
        (["table", "--publish", "profile=smoke", "runs=elsewhere"], "--publish"),
        (["render"], "no results/records here"),
        (["trian"], "Did you mean 'train'?"),
        (["eval", "--benchmark", "all"], "no option '--benchmark'; valid: --run, "),
        (["eval", "--benchmark=all"], "Did you mean '--benchmarks'?"),
        (["ls", "--all"], "no option '--all'"),
        (["train", "trainer.learning_rate=1"], "Did you mean 'trainer.lr'?"),
        (["train", "objective=decay", "objective.backbones=[dflsh]"], "names backbones: 'dflsh' is none of"),
        (["train", "--foo"], "no option '--foo'; valid: --force, --together, --eval, --cfg"),
        (["train", "--cfg", "jbo"], "none of job, hydra, all"),
        (["train", "--cfg"], "--cfg needs a value"),
        (["train", "objective=auf,decay"], "add -m to run each"),
        (["train", "objective=null"], "objective is one of auf, "),
        (["train", "~objective"], "objective is one of auf, "),
        (["train", "profile=smoke", "seed=${nothing}"], "nothing"),
        (["train", "profile=smoke", "device=meta"], "device='meta' cannot be used"),
        (["train", "profile=smoke", "target.path=/nonexistent"], "there is no such folder"),
        (["train", "profile=smoke", "trainer.batch_size=4096"], "fewer than trainer.batch_size=4096"),
        (["train", "profile=smoke", "target.mask_token=maks", "runs=other"], "'maks' is not in the tokenizer"),
        (["train", "profile=smoke", "objective.base.credit=os.nothing"], "objective.base.credit"),
        (["train", "profile=smoke", "objective.base=null"], "objective.base"),
        (["train", "profile=smoke", "backbone.kind=torch.nn.Identity"], "is no drafter's class"),
        (["train", "profile=smoke", "objective.base.credit=math.sqrt"], "math.sqrt is no credit"),
        (["train", "profile=smoke", "objective=decay", "objective.base.gamma=[4]"], "objective.base.gamma"),
        (["train", "-m", "profile=smoke", "seed=range(0,3,0)"], "must not be zero"),
        (["table", "--seeds", "0,0"], "give different integers"),
        (["compare", "a", "a"], "not with itself"),
        (["compare", "a.json", "b.json"], "no record a.json: there is no such file"),
        (["eval", "--benchmarks", "offline_chat,offline_chat"], "offline_chat is named twice"),
        (["eval", "--all-runs", "--run", "x"], "leave --run out"),
        (["eval", "runs="], "runs= is empty"),
        (["eval", "--benchmarks", "all,gsm8k"], "all is used alone"),
        (["eval", "--benchmarks", ""], "a name is empty; write them as gsm8k,mbpp"),
        (["train", "objective=decay", "objective.base.gama=4"], "set there: credit, gamma. Did you mean 'gamma'?"),
        (["train", "objective=auf", "objective=decay"], "objective is given twice, as auf and as decay"),
        (["compare", "a", "b", "k=v"], "takes no setting but runs=FOLDER"),
        (["audit", "evaluation.precision=bf16"], "an audit decodes live, in fp32 and in bf16"),
        (["eval", "--cross-check", "-1"], "evaluation.audit=-1 must be at least 0"),
    ],
)
def test_bad_input_is_one_clear_line(
    table: tuple[Path, str], words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = table
    monkeypatch.delenv("SPECAUF_DATA", raising=False)
    monkeypatch.setattr(publish, "code_state", lambda: {"commit": None, "dirty": None})
    done = specauf(folder, *words, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("specauf:")]
    assert done.returncode != 0
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_other_taps_or_block_size_is_refused(table: tuple[Path, str]) -> None:
    folder, _ = table
    run = next(folder.glob("runs/dflash-auf-*/drafter")).parent
    config = run / "drafter" / "config.json"
    original = config.read_text()
    for old, new, says in (
        ('"block_size": 16', '"block_size": 8', "block size is 8"),
        ("[0, 1, 2]", "[0, 1]", "tapped layers is [0, 1]"),
        ('"target_fingerprint": "', '"target_fingerprint": "x', "its target is x"),
    ):
        assert old in original
        config.write_text(original.replace(old, new))
        done = specauf(folder, "eval", "--run", run.name, "evaluation.max_new_tokens=4", check=False)
        config.write_text(original)
        assert done.returncode != 0
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_help_answers_quickly_and_train_help_lists_the_groups(table: tuple[Path, str]) -> None:
    folder, _ = table
    assert "table" in specauf(folder, "--help").stdout
    listed = specauf(folder, "train", "--help").stdout
    assert "objective: auf, auf_decay, b_auf, b_auf_decay" in listed
    assert "trainer.normalize: credit | block_credit | valid | blocks | sequence · what a loss is divided by" in listed


def test_figures_and_report_follow_the_last_table(table: tuple[Path, str]) -> None:
    folder, _ = table
    quick = ("evaluation.prompts=1", "evaluation.heldout_anchors=1")
    drawn = specauf(folder, "figures", "profile=smoke", *quick).stdout.split()
    assert "runs/figures/smoke/inversion.svg" in drawn
    assert "runs/figures/smoke/steps-dflash.svg" in drawn, "drafters kept on the way are measured for it"
    assert all((folder / p).is_file() and (folder / p).with_suffix(".png").is_file() for p in drawn)
    assert specauf(folder, "report", "profile=smoke").stdout.split() == ["runs/reports/smoke.html"]
    assert "<svg" in (folder / "runs/reports/smoke.html").read_text()
    for command in ("figures", "report"):
        done = specauf(folder, command, "profile=laptop", check=False)
        assert done.returncode == 2
        assert "specauf table profile=laptop" in done.stderr


def test_ls_and_show_tell_finished_failed_and_interrupted_runs_apart(table: tuple[Path, str]) -> None:
    folder, _ = table
    assert specauf(folder, "train", "profile=smoke", "trainer.lr=1e30", check=False).returncode == 2
    whole = next(f.parent for f in folder.glob("runs/dflash-decay-*/finished.json") if (f.parent / "records").is_dir())
    torn = whole.with_name("dflash-decay-torn")
    shutil.copytree(whole, torn, ignore=shutil.ignore_patterns("finished.json", "records"))
    about = json.loads((torn / "run.json").read_text())
    (torn / "run.json").write_text(json.dumps({**about, "run": torn.name}))
    lines = (torn / "log.jsonl").read_text().splitlines(keepends=True)
    (torn / "log.jsonl").write_text("".join(lines[:2]) + lines[2][:20])  # killed while it was written
    try:
        listed = specauf(folder, "ls").stdout.splitlines()
        assert sum("failed at step 0  DFlash AUF seed 0: loss nan" in x for x in listed) == 1
        assert "dflash-decay-torn  interrupted at step 8" in listed
        assert sum("T=0 tau" in x for x in listed) >= 4
        with lock(torn, "run"):
            (line,) = (x for x in specauf(folder, "ls").stdout.splitlines() if x.startswith("dflash-decay-torn"))
            assert line.startswith("dflash-decay-torn  training at step 8  in process ")
        shown = specauf(folder, "show", "dflash-decay-torn").stdout
        assert "not measured yet" in shown
        assert "interrupted at step 8 of 24" in shown
        (torn / "checkpoints" / "step-000009").mkdir(parents=True)  # it continues there
        assert "dflash-decay-torn  interrupted at step 9" in specauf(folder, "ls").stdout.splitlines()
        assert "Did you mean 'dflash-decay-torn'" in specauf(folder, "show", "dflash-decay-turn", check=False).stderr
    finally:
        shutil.rmtree(torn)
    latest = specauf(folder, "show", whole.name).stdout
    assert re.search(r"loss \d+\.\d+ [▁▂▃▄▅▆▇█]+ \d+\.\d+", latest)
    assert "average" in latest
    assert "no run under empty/" in specauf(folder, "ls", "runs=empty", check=False).stderr


def test_an_objective_that_gives_no_weight_and_one_with_another_name_are_said(
    tmp_path: Path, table: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = table
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "nothing.yaml").write_text(
        "name: nothing\ntitle: nothing\nbackbones: [dflash]\nbase: {credit: full_ce, weight: 1.0e-300}\n"
    )
    monkeypatch.setenv("SPECAUF_CONF", str(tmp_path))
    done = specauf(folder, "train", "objective=nothing", "profile=smoke", "trainer.steps=2")
    assert "nothing is learnt, every gradient up to step 2 is zero" in done.stderr
    done = specauf(folder, "train", "objective=auf", "backbone=domino", "profile=smoke", "trainer.steps=2")
    assert "objective=auf is b_auf on domino" in done.stderr
    assert "nothing is learnt" not in done.stderr


def test_tau_is_measured_while_training_and_changes_nothing(table: tuple[Path, str]) -> None:
    folder, _ = table
    words = ("train", "objective=auf", "profile=smoke", "trainer.steps=8", "evaluation.max_new_tokens=8")
    logs, weights = [], []
    for more in ((), ("trainer.eval_every=4", "trainer.eval_prompts=2")):
        run = folder / specauf(folder, *words, *more).stdout.strip()
        logs.append([json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()])
        weights.append((run / "drafter" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert ["tau" in line for line in logs[0] + logs[1]] == [False, False, True, True]
    assert all(1.0 <= line["tau"] < 16 for line in logs[1])


def test_together_trains_a_sweep_from_one_pass(table: tuple[Path, str]) -> None:
    folder, _ = table
    words = ["train", "--together", "profile=smoke", "objective=auf,decay", "trainer.steps=4"]
    done = specauf(folder, *words)
    assert [Path(x).name.split("-tiny")[0] for x in done.stdout.split()] == ["dflash-auf", "dflash-decay"]
    assert all((folder / x / "finished.json").is_file() for x in done.stdout.split())
    again = specauf(folder, *words)
    assert again.stderr.count("finished already") == 2
    mixed = specauf(folder, *words, "data.limit=500,600", check=False)
    assert mixed.returncode == 2
    assert "has another target, other data or other batches" in mixed.stderr


def test_drafters_kept_on_the_way_can_be_measured(table: tuple[Path, str]) -> None:
    folder, _ = table
    name = next(f.name for f in folder.glob("runs/dflash-auf-*") if (f / "records").is_dir())
    found = specauf(folder, "eval", "--run", name, "--every-checkpoint", "--benchmarks", "offline_chat")
    assert [int(x) for x in re.findall(r"  step +(\d+)  T=0 tau", found.stdout)] == [8, 16, 24]
    made = sorted(folder.glob(f"runs/{name}/snapshots/*/records/*.json"))
    assert sorted({json.loads(f.read_text())["step"] for f in made}) == [8, 16, 24]
    assert "steps-dflash.svg" in specauf(folder, "figures", "profile=smoke").stdout


def test_aliases_and_hydras_own_options_work_on_the_command_line(table: tuple[Path, str]) -> None:
    folder, _ = table
    words = ["train", "backbone=domino", "profile=smoke", "trainer.steps=2"]
    assert "/domino-b_auf-tiny-smoke-s0-" in specauf(folder, *words, "objective=auf").stdout
    swept = specauf(folder, *words, "-m", "objective=auf_decay,s_auf").stdout
    assert "/domino-b_auf_decay-" in swept
    assert "/domino-s_auf-" in swept
    assert not (folder / "multirun.yaml").exists(), "a sweep must leave the checkout clean"
    for cfg in (["--cfg", "job"], ["--cfg=job"], ["-c", "job"]):
        assert "gru_hidden_dim: 16" in specauf(folder, *words, *cfg).stdout


def test_compare_finds_what_both_have_after_a_partial_evaluation(table: tuple[Path, str]) -> None:
    folder, _ = table
    names = [
        next(f.name for f in folder.glob(f"runs/dflash-{o}-*") if (f / "records").is_dir()) for o in ("decay", "auf")
    ]
    specauf(folder, "eval", "--run", names[0], "--benchmarks", "offline_chat", "evaluation.audit=1")
    found = specauf(folder, "compare", *names).stdout
    assert len(re.findall(r"\(offline\) +T=0", found)) == 6
    files = [max(folder.glob(f"runs/{name}/records/*.json"), key=lambda f: f.stat().st_size) for name in names]
    assert specauf(folder, "compare", *map(str, files)).stdout == found, "records by their files"
    assert f"{names[1]}  (AUF, seed 0, smoke)" in specauf(folder, "show", str(files[1])).stdout


def test_limits_of_benchmarks_leave_the_training_data_alone(table: tuple[Path, str]) -> None:
    """Data were cleaned of the prompts chosen when the run was trained; how many are asked now is another matter."""
    folder, _ = table
    run = next(f.parent for f in sorted(folder.glob("runs/dflash-auf-*/finished.json")))
    trained, asked = configs(run, ["benchmark.offline_chat.limit=2"], "all")
    assert trained.benchmark["offline_chat"].limit != 2
    assert asked.benchmark["offline_chat"].limit == 2
    other = ["benchmark=gsm8k", "benchmark.gsm8k.limit=3", "benchmark_root=there"]
    trained, asked = configs(run, other, "all")
    assert "gsm8k" not in trained.benchmark
    assert asked.benchmark["gsm8k"].limit == 3


def test_data_fetch_takes_the_profile_it_fetches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("specauf_cli.data.fetch.fetch", lambda *found, **_: asked.extend(found))
    specauf(tmp_path, "data", "fetch", "--out", "there", "profile=cpu_real")
    assert asked[0] == Path("there")
    benchmarks: Any = asked[1]
    assert list(benchmarks) == ["gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "alpaca"]
