from __future__ import annotations

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from limbeck.errors import UserError
from limbeck.measure import pair_quality

SCORES = torch.randn(40, generator=torch.Generator().manual_seed(0))
GRADES = (SCORES + torch.randn(40, generator=torch.Generator().manual_seed(1))).mul(2).round()


def test_graded_pairs_agree_with_scipy_ties_included() -> None:
    found = pair_quality(SCORES, GRADES)
    assert found["spearman"] == pytest.approx(spearmanr(SCORES, GRADES).statistic, abs=1e-9)
    assert found["pearson"] == pytest.approx(pearsonr(SCORES, GRADES).statistic, abs=1e-6)


def test_binary_pairs_agree_with_scikit_learn() -> None:
    target = (GRADES > 0).int()
    found = pair_quality(SCORES, target, "binary")
    assert found["auc"] == pytest.approx(roc_auc_score(target, SCORES))
    assert found["average_precision"] == pytest.approx(average_precision_score(target, SCORES))


def test_only_the_order_counts_and_a_collapsed_scorer_gets_nothing() -> None:
    assert pair_quality(SCORES.exp(), GRADES)["spearman"] == pytest.approx(pair_quality(SCORES, GRADES)["spearman"])
    assert pair_quality(torch.ones(40), GRADES)["spearman"] == 0.0


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="0 and 1"):
        pair_quality(SCORES, GRADES, "binary")
    with pytest.raises(UserError, match="kind"):
        pair_quality(SCORES, GRADES, "sorted")
    with pytest.raises(UserError, match="scores"):
        pair_quality(SCORES[:, None], GRADES)
    with pytest.raises(UserError, match="NaN"):
        pair_quality(torch.full((3,), float("nan")), torch.arange(3.0))
