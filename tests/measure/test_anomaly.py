"""Metrics of anomaly detection against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from limbeck.errors import UserError
from limbeck.measure.anomaly import alarm_rates, auroc, best_f1, region_overlap

RANDOM = np.random.default_rng(0)
# Few distinct values, so that ties count.
SCORES = torch.tensor(RANDOM.integers(0, 12, 200) / 4.0)
LABELS = torch.tensor(RANDOM.random(200) < 0.3)


def test_auroc_agrees_with_scikit_learn() -> None:
    assert auroc(SCORES, LABELS) == pytest.approx(roc_auc_score(LABELS, SCORES), abs=1e-12)
    square = SCORES.view(2, 10, 10), LABELS.view(2, 10, 10)
    assert auroc(*square) == auroc(SCORES, LABELS)


def test_auroc_knows_nothing_of_scale() -> None:
    assert auroc(7 * SCORES - 3, LABELS) == auroc(SCORES, LABELS)


def test_best_f1_is_the_best_of_all_thresholds() -> None:
    value, threshold = best_f1(SCORES, LABELS)
    every = {float(t): f1_score(LABELS, t <= SCORES) for t in SCORES.unique()}
    assert value == pytest.approx(max(every.values()))
    assert every[threshold] == pytest.approx(value)


def regions() -> torch.Tensor:
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, 2:4, 2:4] = masks[0, 10:18, 8:16] = masks[1, 5:15, 5] = True
    return masks


def test_region_overlap_is_one_for_the_mask_itself() -> None:
    assert region_overlap(regions().float(), regions()) == 1.0


def test_region_overlap_weighs_regions_alike() -> None:
    masks = regions()
    maps = masks.float()
    maps[0, 10:18, 8:16] = -1.0  # the largest of three regions is missed altogether
    assert region_overlap(maps, masks) == pytest.approx(2 / 3, abs=1e-9)


def test_region_overlap_of_noise_agrees_with_a_plain_loop() -> None:
    masks, maps = regions(), torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(1)).double()
    boxes = [(0, slice(2, 4), slice(2, 4)), (0, slice(10, 18), slice(8, 16)), (1, slice(5, 15), slice(5, 6))]
    good = sorted(maps[~masks].tolist(), reverse=True)
    shares = []
    for step in range(1, 201):
        threshold = good[int(np.ceil(0.3 * step / 200 * len(good))) - 1]
        shares.append(np.mean([float((maps[box] >= threshold).double().mean()) for box in boxes]))
    assert region_overlap(maps, masks) == pytest.approx(float(np.mean(shares)))


def test_alarm_rates_use_good_scores_only() -> None:
    scores, labels = torch.tensor([0.1, 0.6, 0.4, 0.9]), torch.tensor([False, False, True, True])
    found = alarm_rates(scores, labels, torch.linspace(0, 0.5, 101))
    assert found == {"false_alarms": 0.5, "recall": 0.5}


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UserError, match="one kind"):
        auroc(SCORES, torch.zeros(200))
    with pytest.raises(UserError, match="finite"):
        auroc(SCORES * float("nan"), LABELS)
    with pytest.raises(UserError, match="shape"):
        auroc(SCORES, LABELS[:3])
