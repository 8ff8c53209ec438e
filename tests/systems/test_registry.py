"""The registry: cards as data, errors that name file and key, verdicts from the ledger, the template."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.systems import registry

CARD = """
slug = "a-method"
title = "A method"
year = 2025
family = "theory"
task = "image classification"
idea = "It learns."
parts = ["logits"]
limits = []
faithful = "from paper"
"""
TEMPLATE_FILES = ["card.toml", "method.py", "experiment.py", "README.md"]


def put(root: Path, text: str = CARD, folder: str = "theory/a_method") -> Path:
    path = root / folder / "card.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_systems_are_found_by_walking_the_folders(tmp_path: Path) -> None:
    put(tmp_path)
    put(
        tmp_path,
        CARD.replace("a-method", "another").replace("theory", "graphs").replace("image", "graph"),
        "graphs/another",
    )
    assert [card.slug for card in registry.systems(tmp_path)] == ["another", "a-method"]
    assert [card.slug for card in registry.systems(tmp_path, family="theory")] == ["a-method"]
    assert [card.slug for card in registry.systems(tmp_path, task="graph classification")] == ["another"]
    assert registry.card("a-method", tmp_path).parts == ("logits",)


def test_every_system_of_the_library_has_a_whole_card_page_and_experiment() -> None:
    for card in registry.systems():
        assert card.module == f"limbeck.systems.{card.family}.{card.slug.replace('-', '_')}"
        for name in TEMPLATE_FILES:
            assert (card.folder / name).is_file(), f"{card.slug} has no {name}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("slug =", "slug ="[:-1]), "a TOML file"),
        (('title = "A method"\n', ""), "title: given an empty value; allowed: a str; the key is required"),
        (("year = 2025", 'year = "2025"'), "year: given 2025; allowed: a int"),
        (("year = 2025", "year = 20"), "year: given 20"),
        (("year = 2025", "year = 2025\ncolour = 1"), "key: given colour"),
        (('family = "theory"', 'family = "theories"'), "family: given theories"),
        (('slug = "a-method"', 'slug = "b-method"'), "slug: given b-method; allowed: a-method, after its folder"),
        (('slug = "a-method"', 'slug = "A_Method"'), "slug: given A_Method"),
        (('parts = ["logits"]', "parts = []"), "parts: given .*; allowed: at least one part"),
        (('parts = ["logits"]', "parts = [1]"), "parts: .*texts"),
        (('idea = "It learns."', 'idea = " "'), "idea: given an empty value"),
        (
            ('faithful = "from paper"', 'faithful = "yes"'),
            "faithful: given yes; allowed: a text that begins with from code",
        ),
    ],
)
def test_a_wrong_card_is_refused_with_file_and_key(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = put(tmp_path, CARD.replace(*change))
    with pytest.raises(UserError, match=said) as caught:
        registry.systems(tmp_path)
    assert str(path) in str(caught.value)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(UserError, match="system: given nothing; allowed: a-method"):
        registry.card("nothing", tmp_path)
    with pytest.raises(UserError, match="system"):
        registry.card("../a-method", tmp_path)
    with pytest.raises(UserError, match="family: given poetry"):
        registry.systems(tmp_path, family="poetry")
    with pytest.raises(UserError, match="task: given sorting; allowed: image classification"):
        registry.systems(tmp_path, task="sorting")


def test_two_folders_with_one_slug_are_refused(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, folder="graphs/a_method")
    with pytest.raises(UserError, match="slug: given a-method; allowed: a slug that no other system has"):
        registry.systems(tmp_path)


def test_a_hundred_cards_are_read_fast_and_without_torch(tmp_path: Path) -> None:
    for number in range(100):
        long = CARD.replace("a-method", f"m{number}").replace("It learns.", "It learns. " * 60)
        put(tmp_path, long, f"theory/m{number}")
    program = (
        "import sys, time, limbeck.systems.registry as r\n"
        f"start = time.process_time(); cards = r.systems({str(tmp_path)!r}); spent = time.process_time() - start\n"
        "assert len(cards) == 100\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "print(spent)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1


def test_verdicts_come_from_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    assert registry.verdicts("a-method", tmp_path, tmp_path / "ledger") == {}
    claims = [{"verdict": word} for word in ("reproduced", "reproduced", "inconclusive")]
    monkeypatch.setattr("limbeck.experiment.ledger.read", lambda *_: {"entries": {"main": {"claims": claims}}})
    assert registry.verdicts("a-method", tmp_path) == {
        "main": {"reproduced": 2, "not reproduced": 0, "inconclusive": 1}
    }


def test_the_template_in_a_folder_of_ones_own_passes_its_own_test(tmp_path: Path) -> None:
    written = registry.new_system("my-method", "classification", tmp_path)
    assert [path.name for path in written] == [*TEMPLATE_FILES, "test_my_method.py"]
    assert "$" not in "".join(path.read_text() for path in written)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written[-1])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_template_in_a_checkout_goes_to_its_rooms(tmp_path: Path) -> None:
    rooms = tmp_path / "src" / "limbeck" / "systems"
    rooms.mkdir(parents=True)
    written = registry.new_system("my-method", "retrieval", tmp_path)
    assert written[0] == rooms / "retrieval" / "my_method" / "card.toml"
    assert written[-1] == tmp_path / "tests" / "systems" / "retrieval" / "test_my_method.py"
    assert "from limbeck.systems.retrieval.my_method.method import MyMethod" in written[-1].read_text()
    assert registry.card("my-method", rooms).family == "retrieval"
    for path in written:
        if path.suffix == ".py":
            compile(path.read_text(), str(path), "exec")


def test_bad_and_taken_slugs_are_refused(tmp_path: Path) -> None:
    for slug in ("My-Method", "my_method", "-x", "../x", "1st", "a--b", ""):
        with pytest.raises(UserError, match="slug: "):
            registry.new_system(slug, "theory", tmp_path)
    with pytest.raises(UserError, match="family: given poetry"):
        registry.new_system("x", "poetry", tmp_path)
    registry.new_system("x", "theory", tmp_path)
    with pytest.raises(UserError, match="one that is not taken"):
        registry.new_system("x", "theory", tmp_path)
    assert time.time() - (tmp_path / "x" / "card.toml").stat().st_mtime < 60
