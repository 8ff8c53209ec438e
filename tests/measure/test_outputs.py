from __future__ import annotations

import torch
from torch import nn

from limbeck.data.split import Split
from limbeck.measure import features_of, logits_of


def test_features_come_in_order_from_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    split = Split(torch.randn(10, 4), None, torch.arange(10))
    found = features_of(model, split.batches(3), lambda network, batch: network(batch["input"]))
    torch.testing.assert_close(found, model[0](split.input).detach())
    assert model.training
    assert not found.is_inference()


def test_logits_are_the_same_whatever_the_batch_and_every_part_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Dropout(0.5).eval())
    split = Split(torch.randn(10, 4), None, torch.arange(10))
    for size in (3, 512):
        torch.testing.assert_close(logits_of(model, split, size), model[0](split.input).detach())
    doubled = logits_of(
        model, Split([1.0, 2.0], None, torch.arange(2)), collate=lambda rows: 2 * torch.ones(len(rows), 4)
    )
    torch.testing.assert_close(doubled, model[0](2 * torch.ones(2, 4)).detach())
    assert [part.training for part in model] == [True, True, False]
