"""Walks the registry: every system has a valid card and page, trains, resumes bit for bit, and runs all its arms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.fit import fit
from limbeck.experiment.base import Experiment, Outcome, load_experiment
from limbeck.experiment.ledger import read
from limbeck.systems import registry
from tests.engine.helpers import Cut, Die

CARDS = {card.slug: card for card in registry.systems()}
ENTRIES = [(slug, name) for slug in CARDS for name in registry.experiments(slug)]


def experiment(slug: str, name: str) -> Experiment:
    found = load_experiment(registry.experiment_reference(slug, name), "smoke")
    found.prepare()
    return found


def method_arm(found: Experiment) -> str:
    return next(name for name, arm in found.arms.items() if arm.role == "method")


@pytest.mark.parametrize("slug", CARDS)
def test_card_page_and_ledger(slug: str) -> None:
    card = CARDS[slug]
    assert card.idea
    assert card.limits
    assert (card.folder / "README.md").read_text().startswith("# ")
    entries = read(card.family, slug)["entries"]
    assert not set(entries) & set(card.unrecorded), "what is recorded now"
    known = {*entries, *card.unrecorded}
    assert known == set(registry.experiments(slug)), "every experiment is recorded, or its card says that it is not"
    for name, entry in entries.items():
        assert entry["size"] == "full"
        assert not entry.get("partial"), f"{name} was recorded in part"
        assert entry["claims"]
        for claim in entry["claims"]:
            assert claim["verdict"] in ("reproduced", "not reproduced", "inconclusive")
            assert claim["text"]


@pytest.mark.parametrize("slug", CARDS)
def test_findings_are_about_claims(slug: str) -> None:
    claims = {
        name: {claim.text for claim in load_experiment(registry.experiment_reference(slug, name), "full").claims}
        for name in registry.experiments(slug)
    }
    for key, value in CARDS[slug].findings.items():
        if isinstance(value, str):
            assert any(key in texts for texts in claims.values()), key
        else:
            assert key in claims, f"no experiment {key}"
            assert value.keys() <= claims[key]


@pytest.mark.parametrize(("slug", "name"), ENTRIES)
def test_experiment_is_fair(slug: str, name: str) -> None:
    found = load_experiment(registry.experiment_reference(slug, name), "full")
    roles = {arm.role for arm in found.arms.values()}
    compares = any(hasattr(claim, "over") for claim in found.claims)
    if compares:
        assert {"none", "rival", "method"} <= roles, "a no-distillation arm, a rival and the method"
        assert roles & {"control", "ablation"}, "a control that could refute the claim"
        assert len(found.seeds["full"]) >= 3
    assert all(arm.description for arm in found.arms.values())


def run_with(monkeypatch: pytest.MonkeyPatch, found: Experiment, arm: str, **more: Any) -> tuple[Outcome | None, int]:
    """Run an arm with further arguments for every training inside it; gives the outcome and the number of trainings."""
    trainings = 0

    def patched(distiller: Any, loader: Any, **options: Any) -> Any:
        nonlocal trainings
        trainings += 1
        given = dict(more)
        if "out" in given:
            given["out"] = Path(given["out"]) / str(trainings)
        given["callbacks"] = [*options.pop("callbacks", ()), *given.pop("callbacks", ())]
        return fit(distiller, loader, **{**options, **given})

    with monkeypatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("limbeck.") and getattr(module, "fit", None) is fit and name != "limbeck.engine.fit":
                patch.setattr(module, "fit", patched)
        try:
            return found.run(arm, 0), trainings
        except Cut:
            return None, trainings


@pytest.mark.parametrize(("slug", "name"), ENTRIES)
def test_resumes_bit_for_bit(slug: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = experiment(slug, name)
    arm = method_arm(found)
    whole, trainings = run_with(monkeypatch, found, arm)
    assert whole is not None
    if not trainings:
        # Closed forms have nothing to resume; the same call must still give the same numbers.
        assert found.run(arm, 0).metrics == whole.metrics
        return
    where = {"out": tmp_path / name, "checkpoint_seconds": 0.0}
    stopped, _ = run_with(monkeypatch, found, arm, callbacks=[Die(3)], **where)
    assert stopped is None, "the training was too short to be cut"
    resumed, _ = run_with(monkeypatch, found, arm, resume=True, **where)
    assert resumed is not None
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
@pytest.mark.parametrize(("slug", "name"), ENTRIES)
def test_every_arm_runs(slug: str, name: str) -> None:
    found = experiment(slug, name)
    for arm in found.arms:
        outcome = found.run(arm, 0)
        assert found.metric in outcome.metrics, f"{arm} gives no {found.metric}"
