"""The pages: everything is in them, in words; they are whole, well-formed and need no network."""

from __future__ import annotations

import copy
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import write_experiment_report, write_job_report
from limbeck.report.experiment_report import claim_sentence
from limbeck.report.job_report import headline
from tests.report.browser import open_page
from tests.report.samples import ARMS, CARD, CLAIMS, entry, result

# Mean and deviation of the sample's main arm, by hand from its outcomes.
_VALUES = [100 * one["metrics"]["accuracy"] for one in entry()["arms"]["ours"]["outcomes"].values()]
OURS = f"{statistics.mean(_VALUES):.1f} ± {statistics.stdev(_VALUES):.1f}%"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Reader(HTMLParser):
    """Checks nesting and collects text, ids, and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.pictures_without_words = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in named:
            self.ids.append(str(named["id"]))
        self.fetched += [str(named[key]) for key in ("src", "srcset", "data") if key in named]
        if tag in ("link", "use", "image"):
            self.fetched.append(str(named.get("href", "")))
        if tag == "svg" and not named.get("aria-label"):
            self.pictures_without_words += 1

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(path: Path) -> tuple[Reader, str]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(address.startswith(("#", "data:")) for address in reader.fetched), reader.fetched
    assert not re.search(r"url\((?!#)|@import|xmlns", text)
    assert reader.pictures_without_words == 0
    references = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    assert {one or other for one, other in references} <= set(reader.ids)
    return reader, " ".join(" ".join(reader.text).split())


@pytest.fixture(scope="module")
def experiment_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment_report(entry(), CARD, tmp_path_factory.mktemp("page") / "deep" / "report.html")


@pytest.fixture(scope="module")
def job_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job_report(result(), tmp_path_factory.mktemp("job") / "report.html")


def test_pictures_of_outcomes_stand_side_by_side_by_arm(tmp_path: Path) -> None:
    drawn = entry()
    pixel = (
        "data:image/png;base64,"
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
    )
    arms = list(drawn["arms"])[:2]
    for arm in arms:
        drawn["arms"][arm]["outcomes"]["0"]["pictures"] = {"Samples": pixel}
    path = write_experiment_report(drawn, CARD, tmp_path / "report.html")
    page = path.read_text()
    assert page.count(f'src="{pixel}"') == 2
    for arm in arms:
        assert f'alt="Samples: arm {arm}, seed 0"' in page


def test_a_finding_about_one_experiment_goes_before_the_one_about_all(tmp_path: Path) -> None:
    claim = "Ours beats KD by five points"
    findings = {claim: "Of all experiments.", "small": {claim: "Of the small one."}}
    for name, said, not_said in (("small", "small one", "all experiments"), ("large", "all experiments", "small one")):
        page = write_experiment_report(entry(), CARD | {"findings": findings}, tmp_path / f"{name}.html", name)
        _, text = read(page)
        assert f"Of the {said}" in text or f"Of {said}" in text
        assert not_said not in text


def test_the_experiment_page_says_everything(experiment_page: Path) -> None:
    _, text = read(experiment_page)
    for name, (description, _, _) in ARMS.items():
        assert name in text
        assert description in text
    for claim in CLAIMS:
        assert claim.text in text
    for words in (
        CARD["title"],
        CARD["idea"],
        CARD["formula"],
        "The gate passed",
        "teacher accuracy: 0.88 (0.3 to 0.99)",
        "Ten classes leave no room for it.",
        "[paper] table 1",
        "The released loss is summed.",
        "1 diverged",
        "limbeck run ours --record",
        "ab" * 32,
        "with local changes",
        "0123456789ab",
        "A Processor, 2 cores",
        OURS,
        "Validation accuracy during training",
    ):
        assert words in text, words


def test_verdicts_are_sentences_with_difference_and_interval(experiment_page: Path) -> None:
    _, text = read(experiment_page)
    assert re.search(
        r"Reproduced: on accuracy, ours is ahead of none by 5\.\d points on average over 5 paired seeds "
        r"\(95% interval \+5\.\d to \+6\.\d points\)\. The claim asks for more than 1\.0 points; "
        r"the whole interval lies above the margin\.",
        text,
    )
    assert "Not reproduced: on accuracy, ours is ahead of kd by" in text
    assert "where lower is better. The claim asks that it be not worse by more than 0.05 points" in text
    assert "Inconclusive: on accuracy, ours-uniform is ahead of random" in text
    assert "random diverged with seed 1: nothing to compare with there." in text
    assert "Reproduced: the measured deviation is 3e-08, at most 1e-06 is allowed." in text


def test_a_claim_without_numbers_still_has_a_sentence() -> None:
    claim: dict[str, Any] = {"kind": "comparison", "metric": "accuracy", "difference": None, "verdict": "inconclusive"}
    assert claim_sentence(claim | {"reason": "kd did not run"}) == "Inconclusive: kd did not run."


def test_a_closed_gate_is_said_first_and_a_bare_entry_still_makes_a_page(tmp_path: Path) -> None:
    bare = copy.deepcopy(entry())
    bare |= {"claims": [], "reference": {}, "data": {}, "commit": "", "testbed": ""}
    bare["gate"] = {"passed": False, "checks": []}
    for arm in bare["arms"].values():
        for outcome in arm["outcomes"].values():
            outcome.pop("notes", None)
            outcome["curves"] = {}
    _, text = read(write_experiment_report(bare, None, tmp_path / "bare.html"))
    assert "The gate did not pass: the results below are void." in text
    assert "This experiment states no claim." in text


def test_an_arm_that_always_diverged_is_shown_as_such(tmp_path: Path) -> None:
    lost = copy.deepcopy(entry())
    for outcome in lost["arms"]["random"]["outcomes"].values():
        outcome["metrics"]["accuracy"] = None
        outcome["curves"]["validation_accuracy"] = [None] * 5
    lost["arms"]["random"]["summary"]["accuracy"] = {"mean": None, "std": None, "n": 0, "diverged": 5}
    _, text = read(write_experiment_report(lost, CARD, tmp_path / "lost.html"))
    assert "5 diverged" in text


def test_the_job_page_says_everything(job_page: Path) -> None:
    _, text = read(job_page)
    for words in (
        "MiniLM <6 layers to 2>",
        "95.9%",
        "of the teacher's recall@10",
        "2.9× faster, in throughput",
        "student without distillation",
        "0.781",
        "62.5 MB",
        "2.7× faster",
        "Quality against latency",
        "Cosine(embedding)",
        "both sides give 384 dimensions",
        "onnx",
        "2.4e-07",
        "62.5 MB",
        "9f31" * 16,
        "limbeck distill --teacher hf:./minilm --out student/",
        "layers 0 and 5",
        "Recall@10 during",
    ):
        assert words in text, words


def test_the_headline_leaves_out_what_cannot_be_said() -> None:
    whole = result()
    assert [big for big, _ in headline(whole)] == ["95.9%", "2.9×", "2.7×", "1.45×"]
    only_student = whole | {"models": {"student": {"recall@10": 0.7, "bytes": 10}}}
    assert headline(only_student) == [("0.700", "recall@10")]
    assert headline({"models": {}, "primary_metric": ""}) == []


def test_a_job_without_a_teacher_or_curves_still_makes_a_page(tmp_path: Path) -> None:
    small = {"title": "Only a student", "models": {"student": {"accuracy": 0.5, "latency_p50_ms": None}}}
    _, text = read(write_job_report(small | {"primary_metric": "accuracy"}, tmp_path / "small.html"))
    assert "50.0%" in text


@pytest.mark.parametrize("which", ["experiment", "job"])
def test_a_browser_shows_the_page_without_a_complaint(which: str, experiment_page: Path, job_page: Path) -> None:
    path = experiment_page if which == "experiment" else job_page
    probe = "document.body.dataset.width = page.documentElement.scrollWidth;"
    for width in (1200, 390):
        page = open_page(path, probe=probe, width=width)
        assert page.console == []
        assert int(page.data["width"]) <= width, "the page is wider than the window"


def test_the_probe_itself_sees_complaints(job_page: Path) -> None:
    assert open_page(job_page, probe="console.error('seen')").console
    assert open_page(job_page, probe="throw new Error('seen')").console


def test_a_click_on_a_column_head_sorts_the_arms(experiment_page: Path) -> None:
    probe = """
      const table = page.querySelector("table[data-sortable]");
      table.querySelectorAll("thead button")[1].click();
      page.body.dataset.order = [...table.tBodies[0].rows].map((row) =>
      row.cells[0].childNodes[1].textContent).join(" "); page.body.dataset.sorted =
      table.querySelectorAll("thead th")[1].getAttribute("aria-sort");
    """
    page = open_page(experiment_page, probe=probe)
    assert page.console == []
    assert page.data["order"] == "ours kd ours-uniform none random"
    assert page.data["sorted"] == "descending"


def test_a_curve_by_something_else_and_a_plot_are_shown_as_what_they_are(tmp_path: Path) -> None:
    found = entry()
    for arm in found["arms"].values():
        for run in arm["outcomes"].values():
            run["curves"] = {"accuracy_by_generation": [0.7, 0.8]}
    found["arms"]["ours"]["outcomes"]["0"]["pictures"] = {
        "A plot": "data:image/svg+xml;base64,PHN2Zy8+",
        "A map": "data:image/png;base64,AAAA",
    }
    path = write_experiment_report(found, CARD, tmp_path / "report.html")
    _, text = read(path)
    assert "Accuracy by generation." in text
    assert "during training" not in text
    page = path.read_text(encoding="utf-8")
    assert page.count('class="gallery plots"') == 1
    assert page.count('class="gallery"') == 1
