"""The ledger's round trip and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import UserError
from limbeck.experiment import Outcome, ledger
from limbeck.experiment.runner import run_experiment


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return run_experiment("toy_experiments:main", jobs=2, out=tmp_path_factory.mktemp("run"), progress=False)
    finally:
        sys.path.pop(0)


def test_what_is_written_is_read_and_other_entries_stay(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert ledger.read("theory", "toy", tmp_path) == {"schema": 1, "slug": "toy", "entries": {}}
    ledger.write("theory", "toy", "main", entry, tmp_path)
    path = ledger.write("theory", "toy", "second", entry, tmp_path)
    assert path == tmp_path / "theory" / "toy.json"
    document = ledger.read("theory", "toy", tmp_path)
    assert list(document["entries"]) == ["main", "second"]
    main = document["entries"]["main"]
    assert main["claims"] == entry["claims"]
    assert main["arms"]["kd"]["summary"] == entry["arms"]["kd"]["summary"]
    assert main["arms"]["kd"]["outcomes"]["0"]["metrics"] == entry["arms"]["kd"]["outcomes"]["0"]["metrics"]
    curve, recorded = (one["arms"]["kd"]["outcomes"]["0"]["curves"]["validation_accuracy"] for one in (entry, main))
    assert recorded == pytest.approx(curve, rel=1e-5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_is_compared_number_by_number(entry: dict[str, Any]) -> None:
    same = ledger.compare(entry, json.loads(json.dumps(entry)))
    assert len(same) == sum(len(one["metrics"]) for arm in entry["arms"].values() for one in arm["outcomes"].values())
    assert all(pair.relative == 0 for pair in same)
    other = copy.deepcopy(entry)
    metrics = other["arms"]["kd"]["outcomes"]["1"]["metrics"]
    metrics["accuracy"] *= 1.01
    first = ledger.compare(entry, other)[0]
    assert (first.arm, first.seed, first.metric) == ("kd", "1", "accuracy")
    assert first.relative == pytest.approx(0.01 / 1.01)
    del metrics["accuracy"]
    assert ledger.compare(entry, other)[0].relative == math.inf
    part = {**entry, "arms": {"kd": entry["arms"]["kd"]}}
    assert {pair.arm for pair in ledger.compare(part, entry)} == {"kd"}


def test_pictures_are_images_and_small(tmp_path: Path, entry: dict[str, Any]) -> None:
    uri = "data:image/png;base64," + "A" * 40_000
    assert Outcome({}, pictures={"map": uri}).to_json()["pictures"] == {"map": uri}
    for bad in ("https://example.org/a.png", "data:text/html;base64,AAAA", 'data:image/png;base64,AA"><b>'):
        with pytest.raises(UserError, match="pictures"):
            Outcome({}, pictures={"map": bad}).to_json()
    drawn = json.loads(json.dumps(entry))
    outcomes = drawn["arms"]["kd"]["outcomes"]
    outcomes["0"]["pictures"] = {"map": uri}
    path = ledger.write("theory", "toy", "main", drawn, tmp_path)
    assert uri in path.read_text()
    outcomes["1"]["pictures"] = {"map": uri}
    with pytest.raises(UserError, match="at most 60000 per entry"):
        ledger.write("theory", "toy", "main", drawn, tmp_path)


def test_numbers_stand_on_one_line_and_texts_stay(tmp_path: Path, entry: dict[str, Any]) -> None:
    noted = {**entry, "notes": {"brackets": "[ 1, 2 ]"}}
    path = ledger.write("theory", "toy", "main", noted, tmp_path)
    assert '"seeds": [0, 1' in path.read_text()
    assert ledger.read("theory", "toy", tmp_path)["entries"]["main"]["notes"] == {"brackets": "[ 1, 2 ]"}


def test_an_incomplete_run_is_not_recorded(tmp_path: Path, entry: dict[str, Any]) -> None:
    failure = {"arm": "kd", "seed": 1, "error": "ValueError", "traceback": ""}
    for change, said in (
        ({"failures": [failure]}, "kd seed 1"),
        ({"partial": True}, "a part of the experiment"),
        ({"size": "smoke"}, "a part of the experiment"),
    ):
        with pytest.raises(UserError, match=said):
            ledger.write("theory", "toy", "main", entry | change, tmp_path)
    assert not (tmp_path / "theory").exists()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("schema",), 2, "schema: given 2; allowed: 1"),
        (("entries", "main", "commit"), None, "entries.main.commit"),
        (("entries", "main", "claims", 0, "verdict"), "perhaps", "claims.0.verdict: given perhaps"),
        (("entries", "main", "claims", 0, "over"), "nobody", "claims.0.over: given nobody"),
        (("entries", "main", "arms", "kd", "role"), "hero", "arms.kd.role: given hero"),
        (("entries", "main", "arms", "kd", "outcomes"), {}, "the seeds 0, 1, 2, 3, 4"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_key(
    tmp_path: Path, entry: dict[str, Any], place: tuple[Any, ...], value: Any, said: str
) -> None:
    path = ledger.write("theory", "toy", "main", copy.deepcopy(entry), tmp_path)
    document = json.loads(path.read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=said):
        ledger.read("theory", "toy", tmp_path)
    path.write_text("{torn")
    with pytest.raises(UserError, match="not JSON"):
        ledger.read("theory", "toy", tmp_path)


def test_the_environment_says_what_a_result_was_made_with_and_not_where() -> None:
    found = ledger.environment("Some GPU")
    assert found["versions"]["python"].count(".") == 2
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["accelerator"] == "Some GPU"
    assert isinstance(found["dirty"], bool)
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4


def test_the_ledger_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_LEDGER", str(tmp_path))
    assert ledger.ledger_path("theory", "toy") == tmp_path / "theory" / "toy.json"
    monkeypatch.delenv("LIMBECK_LEDGER")
    assert ledger.ledger_root().name in ("ledger", "_ledger")
