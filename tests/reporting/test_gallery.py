"""The page of objectives is in step with code, yaml, measured weights and results."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from helpers.commands import ROOT
from specauf_cli.config import catalogue
from specauf_cli.reporting import gallery

REWRITE = "run python -m specauf_cli.reporting.gallery"
SHIPPED = [entry.choice for entry in catalogue.entries()]


@pytest.fixture(autouse=True)
def _checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_is_what_the_code_says() -> None:
    assert gallery.PAGE.read_text("utf-8") == gallery.document(*gallery.read_weights()), REWRITE


def test_the_pictures_are_drawn_from_the_measured_weights() -> None:
    drawn = gallery.pictures(gallery.read_weights()[0])
    assert set(drawn) == set(gallery.PICTURES.glob("*.svg")), REWRITE
    for path, text in drawn.items():
        assert path.read_text("utf-8") == text, REWRITE


def test_every_objective_was_measured_with_the_terms_that_it_has() -> None:
    weights, about = gallery.read_weights()
    assert set(weights) <= set(SHIPPED)  # a new objective is on the page without a picture until it is measured
    for name in weights:
        terms = tuple(map(catalogue.term_text, catalogue.entry(name).config.base))
        assert weights[name].terms == terms, f"{name}: run benchmarks/weights.py again"
        for shares in weights[name].shares.values():
            assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert about["code"]["dirty"] is False
    assert about["drafters"]["early"]["step"] == about["steps"] / 20


def test_weights_are_those_of_the_definitions() -> None:
    """What pictures must show, whatever was measured."""
    weights, _ = gallery.read_weights()
    decay = weights["decay"].shares["late"]
    assert decay[1] / decay[0] == pytest.approx(2.718281828 ** (-1 / 7), abs=0.05)
    assert weights["tail"].shares["late"][0] == 0
    assert weights["warm_auf"].shares == {
        "early": weights["decay"].shares["early"],
        "late": weights["auf"].shares["late"],
    }
    first = {name: weights[name].shares["late"][0] for name in ("full_ce", "decay", "top_k_auf", "auf")}
    assert sorted(first, key=lambda name: first[name]) == list(first)


def test_a_picture_is_an_svg_whose_bars_are_the_shares() -> None:
    shares = {"early": (0.5, 0.3, 0.2), "late": (0.9, 0.1, 0.0)}
    text = gallery.picture("<AUF>", gallery.Weights(("ce x auf",), shares))
    svg = ET.fromstring(text)
    bars = [rect for rect in svg.iter() if rect.tag.endswith("rect") and float(rect.get("y", 0)) > 10]
    heights = [float(bar.attrib["height"]) for bar in bars]
    full = gallery.BASE - gallery.TOP
    expected = [*(share / gallery.HIGHEST * full for share in shares["early"]), full, 0.1 / gallery.HIGHEST * full, 0]
    assert heights == pytest.approx(expected, abs=0.06)
    assert "90 %" in text
    assert "&lt;AUF&gt;" in text


def test_results_are_read_from_the_published_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "RESULTS", tmp_path)
    assert gallery.results("objectives")["auf"] == []
    (tmp_path / "objectives.csv").write_text(
        "condition,row,what,of,value,low,high\n"
        "original,auf,tau,gsm8k,3.0,2.9,3.1\n"
        "original,auf,tau,average,2.104,2.06,2.16\n"
        "original,auf,tau - decay,average,0.35,0.32,0.38\n"
        "regenerated,auf,tau,average,2.5,2.4,2.6\n"
        "original,decay,tau,average,1.75,1.7,1.8\n"
        "original,decay,tau - decay,average,0.0,0.0,0.0\n"
        "original,decay_2_5,tau,average,2.06,2.0,2.1\n"
    )
    found = gallery.results("objectives")
    assert found["auf"] == [
        "tau 2.10 ± 0.05, +0.35 ± 0.03 (training answers original)",
        "tau 2.50 ± 0.10 (training answers the target's own)",
    ]
    assert found["decay"] == ["tau 1.75 ± 0.05 (training answers original)"]
    assert "decay_2_5" not in found
    page = gallery.document(*gallery.read_weights())
    assert "- result, page objectives: tau 2.10 ± 0.05, +0.35" in page
    assert "- result, page controls: – (not measured yet)" in page


def test_the_page_shows_no_objective_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text(
        "name: mine\ntitle: mine\nbackbones: [dflash]\nbase: {credit: auf}\n"
    )
    monkeypatch.setenv("SPECAUF_CONF", str(tmp_path))
    assert gallery.document(*gallery.read_weights()) == gallery.PAGE.read_text("utf-8")


def test_sources_become_links() -> None:
    page = gallery.PAGE.read_text("utf-8")
    for link in (
        "[arXiv 2605.18810](https://arxiv.org/abs/2605.18810)",
        "[SpecForge#827](https://github.com/sgl-project/SpecForge/issues/827)",
        "(https://github.com/vllm-project/speculators/blob/main/src/speculators/losses/eager.py)",
        "[AMD-AGI/PARD](https://github.com/AMD-AGI/PARD)",
    ):
        assert link in page
    assert not re.search(r"(?<!\[)arXiv \d", page), "a paper without a link"


def test_the_details_of_an_objective_are_all_there() -> None:
    text = "\n".join(gallery.details(catalogue.entry("dspark")))
    for part in (
        "needs      label, target's distribution",
        "yaml       conf/objective/dspark.yaml",
        "command    specauf train objective=dspark",
        "1.8 x tv x decay(gamma=4)",
        "1.8 x sum m c l / sum m c (normalize: credit)",
        "l: tv · Total variation distance: 1/2 sum_v |p - q| = 1 - alpha",
        "c: decay · Exponential decay with depth: c_i = exp(-(i - 1) / gamma)",
    ):
        assert part in text
    assert "its credits read the branch base" in "\n".join(gallery.details(catalogue.entry("s_auf")))


def test_an_objective_as_data() -> None:
    data = json.loads(json.dumps(gallery.as_data(catalogue.entry("l2r"))))
    assert data["needs"] == ["label"]
    assert data["branches"]["base"][2] == {
        "loss": "ce",
        "credit": "chain",
        "knobs": {},
        "weight": 2.6667,
        "normalize": "blocks",
    }
    assert data["branches"]["final"] == data["branches"]["base"]
