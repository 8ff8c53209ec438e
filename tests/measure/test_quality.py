"""Quality against scikit-learn, scipy and numbers worked out by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from limbeck.errors import UserError
from limbeck.measure import classification, language_modelling, perplexity, quality, regression, retrieval


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def test_classification_agrees_with_scikit_learn(generator):
    logits = torch.randn(300, 9, generator=generator) * 2
    target = torch.randint(0, 9, (300,), generator=generator)
    found = classification(logits, target)
    probs = logits.double().softmax(dim=-1).numpy()
    assert found["accuracy"] == metrics.accuracy_score(target, probs.argmax(-1))
    assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(target, probs, k=5))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(target, probs.argmax(-1), average="macro"))
    assert found["nll"] == pytest.approx(metrics.log_loss(target, probs, labels=range(9)))
    assert found["brier"] == pytest.approx(np.square(probs - np.eye(9)[target]).sum(-1).mean())


def test_classification_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).log()
    found = classification(logits, torch.tensor([0, 1, 1]))
    assert set(found) == {"accuracy", "macro_f1", "nll", "ece", "brier"}
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3)
    assert found["brier"] == pytest.approx((0.02 + 0.72 + 0.08) / 3)
    # Each confidence has a bin of its own: |1 - 0.9|, |0 - 0.6|, |1 - 0.8|.
    assert found["ece"] == pytest.approx(0.9 / 3, abs=1e-6)
    assert found["macro_f1"] == pytest.approx(2 / 3)


def test_classification_survives_huge_gaps_and_half_precision():
    logits = torch.tensor([[6e4, -6e4, 0.0], [0.0, 6e4, -6e4]])
    target = torch.tensor([0, 1])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = classification(logits.to(dtype), target)
        assert found["accuracy"] == 1.0
        assert found["nll"] == 0.0
        assert found["brier"] == 0.0
    assert classification(logits, 2 - target)["nll"] > 1e4
    masked = torch.tensor([[1.0, -torch.inf], [0.5, -torch.inf]])
    assert classification(masked, torch.tensor([0, 0]))["nll"] == 0.0


def test_equal_logits_predict_the_lowest_class():
    found = classification(torch.zeros(7, 7), torch.arange(7))
    assert found["accuracy"] == pytest.approx(1 / 7)
    assert found["top5"] == pytest.approx(5 / 7)


def test_leading_axes_are_rows(generator):
    logits, target = (
        torch.randn(4, 5, 3, generator=generator),
        torch.randint(0, 3, (4, 5), generator=generator),
    )
    assert classification(logits, target) == classification(logits.reshape(20, 3), target.reshape(20))


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "given 3; allowed: class indices from 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "given -1"),
        (torch.zeros(2, 3), torch.tensor([0]), "one class per row"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "integer class indices"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no samples"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "two classes"),
        (torch.tensor([[torch.nan, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), "in 1 of 2 rows"),
        (torch.tensor([[torch.inf, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), "in 1 of 2 rows"),
    ],
)
def test_classification_names_what_is_wrong(logits, target, message):
    with pytest.raises(UserError, match=message):
        classification(logits, target)


def test_regression_agrees_with_scipy(generator):
    truth = torch.randn(80, generator=generator)
    guess = (truth + torch.randn(80, generator=generator)).round(decimals=1)
    found = regression(guess, truth)
    assert found["mse"] == pytest.approx(metrics.mean_squared_error(truth, guess))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, guess))
    assert found["r2"] == pytest.approx(metrics.r2_score(truth, guess))
    assert found["pearson"] == pytest.approx(stats.pearsonr(guess.double(), truth.double())[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(guess, truth)[0])


def test_regression_averages_columns_and_takes_large_offsets(generator):
    truth, guess = torch.randn(50, 2, generator=generator), torch.randn(50, 2, generator=generator)
    both, single = regression(guess, truth), [regression(guess[:, i], truth[:, i]) for i in range(2)]
    for name, value in both.items():
        assert value == pytest.approx(np.mean([one[name] for one in single]))
    shifted = regression(guess.double() + 1e6, truth.double() * 1e-8)
    assert shifted["pearson"] == pytest.approx(both["pearson"], abs=1e-6)


def test_a_constant_explains_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = regression(torch.full((5,), 0.1), torch.arange(5.0))
        single = regression(torch.tensor([1.0]), torch.tensor([3.0]))
    assert found["pearson"] == found["spearman"] == 0.0
    assert single == {"mse": 4.0, "mae": 2.0, "r2": 0.0, "pearson": 0.0, "spearman": 0.0}
    with pytest.raises(UserError, match="NaN"):
        regression(torch.tensor([torch.nan]), torch.tensor([1.0]))
    with pytest.raises(UserError, match="shape"):
        regression(torch.zeros(3, 1), torch.zeros(3))


def test_retrieval_by_hand():
    documents = torch.eye(12)
    queries = torch.eye(12)
    queries[0] = documents[1] * 2 + documents[0]
    queries[1] = torch.arange(12.0, 0.0, -1.0)
    queries[1, 1] = 0.5
    found = retrieval(queries, documents)
    # Query 0 finds its document second, query 1 last, at 12.
    assert found["recall@1"] == pytest.approx(10 / 12)
    assert found["recall@10"] == pytest.approx(11 / 12)
    assert found["mrr"] == pytest.approx((10 + 1 / 2 + 1 / 12) / 12)


def test_retrieval_agrees_with_a_plain_loop_at_any_chunk(generator, monkeypatch):
    queries, documents = torch.randn(40, 6, generator=generator), torch.randn(90, 6, generator=generator)
    positives = torch.randint(0, 90, (40,), generator=generator)
    cosine = metrics.pairwise.cosine_similarity(queries, documents)
    ranks = [1 + sum(row > row[right]) for row, right in zip(cosine, positives.tolist(), strict=True)]
    wanted = {
        "recall@1": np.mean([rank <= 1 for rank in ranks]),
        "recall@10": np.mean([rank <= 10 for rank in ranks]),
        "mrr": np.mean([1 / rank for rank in ranks]),
    }
    assert retrieval(queries, documents, positives) == pytest.approx(wanted)
    monkeypatch.setattr(quality, "SCORES_AT_ONCE", 7 * 90)
    assert retrieval(queries, documents, positives) == pytest.approx(wanted)


def test_retrieval_with_several_right_documents():
    documents = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    queries = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    found = retrieval(queries, documents, [{0, 1}, [3]], at=(1, 2))
    assert found == {"recall@1": 0.5, "recall@2": 1.0, "mrr": 0.75}
    # The twin of the right document, when not marked as right, counts against it.
    assert retrieval(queries, documents, torch.tensor([0, 2]), at=(1,)) == {"recall@1": 0.5, "mrr": 0.75}


@pytest.mark.parametrize("width", [3, 384])
def test_a_collapsed_encoder_scores_as_badly_as_it_should(width):
    same = torch.rand(width).expand(50, width)
    assert retrieval(same, same) == {"recall@1": 0.0, "recall@10": 0.0, "mrr": pytest.approx(1 / 50)}
    assert retrieval(torch.zeros(50, width), torch.zeros(50, width))["recall@10"] == 0.0


def test_retrieval_names_what_is_wrong():
    some = torch.eye(3)
    for arguments, message in [
        ((some, torch.zeros(3, 4)), r"\[Q, D\]"),
        ((some, some[:2]), "one per query"),
        ((some, some, torch.tensor([0, 1, 3])), "given 3"),
        ((some, some, [[0], [], [1]]), "without any right"),
        ((some * torch.nan, some), "in 3 of 3 rows"),
        ((some[:0], some), "at least one"),
    ]:
        with pytest.raises(UserError, match=message):
            retrieval(*arguments)
    with pytest.raises(UserError, match="similarity"):
        retrieval(some, some, similarity="cosinus")


def test_dot_similarity_sees_lengths():
    documents = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    queries = torch.tensor([[1.0, 0.2]])
    assert retrieval(queries, documents)["recall@1"] == 1.0
    assert retrieval(queries, documents, similarity="dot")["recall@1"] == 0.0


def test_perplexity_weighs_tokens_and_not_batches():
    assert perplexity(torch.tensor([2.0, 10.0]), torch.tensor([2, 4])) == pytest.approx(math.exp(2.0))
    assert perplexity([2.0, 10.0], [2, 4]) == perplexity(12.0, 6)
    assert language_modelling(6 * math.log(8), 6) == pytest.approx({"nll": math.log(8), "bits": 3.0, "perplexity": 8.0})
    assert perplexity(1e6, 1) == math.inf
    with pytest.raises(UserError, match="tokens"):
        perplexity(1.0, 0)
