"""NCFM: the discrepancy's pitfalls, SampleNet, the method's options, its budget, and its exact claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.condensation import SyntheticImages
from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.experiment import Exact
from limbeck.experiment.condensed_images import affordable
from limbeck.losses import characteristic_discrepancy, unit_vectors
from limbeck.models.convnet import ConvNet
from limbeck.systems.dataset.ncfm import experiment
from limbeck.systems.dataset.ncfm.method import NCFM, CharacteristicDistance, SampleNet
from tests.condensation.helpers import expert_pool

TARGET = torch.arange(2).repeat(10)
REAL = Split(torch.rand(20, 1, 8, 8) * 0.5 + 0.5 * TARGET.view(-1, 1, 1, 1), TARGET, torch.arange(20))


def build() -> nn.Module:
    return ConvNet(2, 1, 8, depth=1, width=4)


def method(**options: Any) -> NCFM:
    sizes: dict[str, Any] = {"per_class": 2, "steps": 5, "real_batch": 6, "frequencies": 16}
    return NCFM(expert_pool(build), **{**sizes, **options})


def test_identical_batches_are_near_zero_and_the_distance_is_symmetric() -> None:
    features, others = torch.randn(3, 9, 5), torch.randn(3, 7, 5)
    distance = CharacteristicDistance(64)
    assert distance(features, features).abs().max() < 1e-6
    torch.manual_seed(0)
    one = distance(features, others)
    torch.manual_seed(0)
    torch.testing.assert_close(distance(others, features), one)
    assert one.shape == (3,)
    assert one.min() > 0.05


def test_features_are_normalised_and_the_spread_scales_the_frequencies() -> None:
    features, others = torch.randn(2, 9, 5), torch.randn(2, 7, 5)
    distance = CharacteristicDistance(64)
    torch.manual_seed(0)
    one = distance(features, others)
    torch.manual_seed(0)
    torch.testing.assert_close(distance(100 * features, 0.01 * others), one)
    torch.manual_seed(0)
    expected = characteristic_discrepancy(
        unit_vectors(features), unit_vectors(others), 0.1 * torch.randn(64, 5), reduction="none"
    )
    torch.manual_seed(0)
    torch.testing.assert_close(CharacteristicDistance(64, spread=0.1)(features, others), expected)


def test_gaussian_frequencies_are_new_for_every_call() -> None:
    distance, like = CharacteristicDistance(8), torch.zeros(1, 4)
    assert not torch.equal(distance.frequencies(like), distance.frequencies(like))
    assert not list(distance.parameters())


def test_sample_net_is_bounded_distinct_and_refuses_one_row() -> None:
    net = SampleNet(6, 32)
    rows = net()
    assert rows.shape == (32, 6)
    assert rows.abs().max() <= 1
    assert len(rows.unique(dim=0)) == 32
    with pytest.raises(UserError, match="frequencies: given 1"):
        SampleNet(6, 1)


def test_a_trained_net_makes_the_discrepancy_larger() -> None:
    torch.manual_seed(0)
    features, others = torch.randn(2, 20, 6), torch.randn(2, 20, 6) + 0.3
    distance = CharacteristicDistance(32, net=SampleNet(6, 32))
    optimizer = torch.optim.SGD(distance.parameters(), lr=0.1)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = distance(features, others).sum()
        (-value).backward()
        optimizer.step()
        values.append(float(value))
    assert sum(values[-5:]) > 1.1 * sum(values[:5])


@pytest.mark.parametrize("adversary", [False, True, "fixed"])
def test_the_method_runs_is_its_seed_and_moves_its_players(adversary: bool | str) -> None:
    first, again = (method(adversary=adversary, seed=3).fit(REAL) for _ in range(2))
    assert torch.equal(first.images_.pixels, again.images_.pixels)
    begun = SyntheticImages.start("mix", REAL, 2, factor=2, seed=3)
    assert (first.images_.pixels - begun.pixels).abs().max() > 0.01
    made = first.transform()
    assert made.bytes == 4 * 64 + 1 + 4
    assert made.split().labels.tolist() == [0] * 8 + [1] * 8
    if adversary:
        torch.manual_seed(3)
        fresh, net = SampleNet(64, 16), first.distance_.net
        assert net is not None
        same = all(torch.equal(one, other) for one, other in zip(net.parameters(), fresh.parameters()))
        assert same == (adversary == "fixed")


def test_a_run_can_go_on_from_kept_images() -> None:
    made = method().fit_transform(REAL)
    more = method(start=SyntheticImages.load(made)).fit(REAL)
    assert more.images_.per_class == 2
    assert not torch.equal(more.transform().tensors["pixels"], made.tensors["pixels"])


def test_long_runs_leave_a_checkpoint(tmp_path: Path) -> None:
    method(adversary=True).fit(REAL, out=tmp_path)
    assert (tmp_path / "last.ckpt").exists()


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="adversary: given always"):
        method(adversary="always")
    with pytest.raises(UserError, match="start: given zeros"):
        method(start="zeros").fit(REAL)


def test_every_arm_keeps_within_the_budget() -> None:
    found = experiment.Fashion("smoke")
    train = found.bed.splits().train
    task = experiment.Task(train, found.budget(train), 0, found.bed, full=False)
    assert task.budget == 2 * 10 * 257 + 1
    assert affordable(task) == 2
    for name in ("random", "random-soft", "tiled", "herding", "k-center", "dm", "ncfm", "ncfm-tiles"):
        made = found.arms[name].setting(task)
        assert made.bytes <= task.budget, name
    assert set(task.metrics) == {"discrepancy"}


def test_the_pages_snippet_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(experiment.__file__).with_name("README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), found)
    assert len(found["distilled"]) == 16
    assert (tmp_path / "small.safetensors").exists()


def test_exact_claims_hold() -> None:
    for claim in experiment.Fashion.claims:
        if isinstance(claim, Exact):
            assert 0 <= claim.check() <= claim.tolerance, claim.text
