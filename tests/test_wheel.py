"""The wheel alone, in an empty directory, is a working ``specauf``."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_wheel_holds_conf_and_experiments_and_works_in_an_empty_directory(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "experiments"):
        ours = {f"specauf_cli/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.yaml")}
        assert ours <= names
    assert "specauf=specauf_cli.__main__:main" in _entry_points(wheel).replace(" ", "")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    # The checkout's editable install is shadowed: PYTHONPATH comes first.
    env = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = ["specauf", "train", "profile=smoke", "objective=auf", "trainer.steps=1", "target.pretrain.steps=1"]
    code = (
        "import sys; from specauf_cli.__main__ import main; from specauf_cli.config import groups, specs; "
        f"assert str(groups.folder('conf')).startswith({str(site)!r}); assert specs.load_spec('table2').rows; "
        f"sys.argv = {words!r}; main()"
    )
    trained = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=env, capture_output=True, text=True, check=True
    )
    assert (empty / trained.stdout.strip() / "finished.json").is_file()


def _entry_points(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        return archive.read(name).decode()
