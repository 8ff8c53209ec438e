"""Probes: how much of a task can be read off frozen features.

Features of masked autoencoders probe poorly and fine-tune well, so look at both (``limbeck.engine.finetuning`` does the
latter). Hyper-parameters are fixed and not searched: nothing is selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.measure.quality import classification


def linear_probe(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, *, strength: float = 1.0
) -> dict[str, float]:
    """A logistic regression on features, each with mean 0 and deviation 1 on the training samples.

    Args:
        train, labels: features ``[N, D]`` and class numbers ``[N]``; all classes must occur.
        test, test_labels: those that are judged.
        strength: inverse of the L2 penalty (``C`` of scikit-learn).

    Returns:
        the metrics of :func:`~limbeck.measure.quality.classification`.
    """
    from sklearn.linear_model import LogisticRegression

    classes = _check(train, labels, test, test_labels)
    found = torch.unique(labels)
    if len(found) != classes:
        raise UserError("labels", f"{len(found)} classes in training", f"all {classes} that are tested")
    first, second = _scaled(train, test)
    model = LogisticRegression(C=strength, max_iter=1000).fit(first.numpy(), labels.numpy())
    scores = torch.from_numpy(model.decision_function(second.numpy()))
    # Of two classes scikit-learn gives the log-odds of the second.
    logits = torch.stack([torch.zeros_like(scores), scores], dim=1) if scores.dim() == 1 else scores
    return classification(logits, test_labels)


def neighbour_probe(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    at_once: int = 1024,
) -> float:
    """Accuracy of the vote of the nearest training features by cosine, each with weight ``exp(cosine / temperature)``.

    Wu et al., arXiv:1805.01978, as used by DINO. Features are centred on the training mean first: what all samples
    share would make every cosine near 1.

    Args:
        neighbours: that vote; at most the training samples. at_once: test samples of one product.
    """
    classes = _check(train, labels, test, test_labels)
    count = min(neighbours, len(train))
    centre = train.mean(0)
    first, second = (torch.nn.functional.normalize((part - centre).float(), dim=1) for part in (train, test))
    right = 0
    for part, truth in zip(torch.split(second, at_once), torch.split(test_labels, at_once), strict=True):
        cosine, nearest = (part @ first.T).topk(count, dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        right += int((votes.argmax(1) == truth).sum())
    return right / len(test)


def _scaled(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    deviation, mean = torch.std_mean(train.double(), dim=0)
    # A feature that never changes says nothing, and must not be blown up by rounding.
    scale = torch.where(deviation > 1e-6, deviation, torch.inf)
    return (train.double() - mean) / scale, (test.double() - mean) / scale


def _check(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> int:
    for name, features, targets in (("train", train, labels), ("test", test, test_labels)):
        if features.dim() != 2 or not len(features) or targets.shape != features.shape[:1]:
            raise UserError(f"{name} features", list(features.shape), "[N, D], and [N] labels", "at least one sample")
    if train.shape[1] != test.shape[1]:
        raise UserError("test features", test.shape[1], f"as many as in training, {train.shape[1]}")
    return int(torch.cat([labels, test_labels]).max()) + 1
