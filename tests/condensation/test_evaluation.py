"""The evaluator: fresh networks of several kinds, trained on a small set and tested on real samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limbeck.condensation.evaluation import Training, averaged, evaluate, train_fresh
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split
from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.measure import logits_of
from limbeck.models.small import MLP

NETWORKS = {"linear": lambda: MLP(2, (), 2), "mlp": lambda: MLP(2, (8,), 2)}
TRAINING = Training(steps=30, batch_size=8, optimizer=OptimizerSettings(lr=3e-2))


def blobs(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % 2
    return Split(torch.randn(count, 2, generator=generator) + 4.0 * target[:, None] - 2, target, torch.arange(count))


def test_networks_learn_from_the_set_alone() -> None:
    made = DistilledSet.of(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    found = evaluate(NETWORKS, made, blobs(60, 1), TRAINING)
    assert set(found) == set(NETWORKS)
    assert all(one["accuracy"] > 0.9 and one["auc"] > 0.95 for one in found.values())
    wrong = DistilledSet.of(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), torch.tensor([1, 0]))
    assert evaluate(NETWORKS, wrong, blobs(60, 1), TRAINING)["mlp"]["accuracy"] < 0.1


def test_weights_decide_what_is_learnt() -> None:
    inputs, target = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1])
    made = DistilledSet.of(inputs, target, torch.tensor([1.0, 0.0]))
    drawn = train_fresh(NETWORKS["linear"], made, TRAINING)
    assert drawn(inputs[:1]).softmax(-1)[0, 0] > 0.8
    alike = train_fresh(NETWORKS["linear"], made, TRAINING, weighted=False)
    assert 0.3 < alike(inputs[:1]).softmax(-1)[0, 0] < 0.7


def test_a_run_is_its_seed() -> None:
    data = blobs(20, 0)
    one, same, other = (train_fresh(NETWORKS["mlp"], data, TRAINING, seed=seed) for seed in (1, 1, 2))
    logits = [logits_of(model, data) for model in (one, same, other)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert not one.training


def test_images_with_soft_labels_and_an_augmentation_are_a_set_too() -> None:
    seen: list[tuple[int, torch.Tensor]] = []

    def shifted(batch: dict[str, object]) -> dict[str, object]:
        view = batch["view"]
        assert isinstance(view, torch.Tensor)
        seen.append((len(view), view))
        return batch

    images = torch.zeros(4, 1, 6, 6)
    images[2:, :, :, 3:] = 1
    soft = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    training = Training(steps=40, batch_size=128, optimizer=OptimizerSettings(lr=1e-2), transform=shifted)
    network = {"conv": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))}
    test = Split(images, soft.argmax(-1), torch.arange(4))
    found = evaluate(network, DistilledSet.of(images, soft), test, training)
    assert found["conv"]["accuracy"] == 1
    assert found["conv"]["nll"] == pytest.approx(-math.log(0.9), abs=0.05), "soft labels are learnt, not their class"
    steps = seen[-40:]
    assert {size for size, _ in steps} == {4}, "a small set is one batch, not a large one of copies"
    assert len({int(view) for _, views in steps for view in views}) == 160, "and every copy has a view of its own"


def test_a_network_that_diverged_says_so() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(values)
            return logits if self.training else logits / 0

    found = evaluate({"broken": Broken}, blobs(8, 0), blobs(8, 1), Training(steps=1))
    assert math.isnan(found["broken"]["accuracy"])


def test_means_over_networks_and_each() -> None:
    means = averaged({"a": {"accuracy": 0.5, "auc": 1.0}, "b": {"accuracy": 1.0, "auc": 0.0}}, ("accuracy", "auc"))
    assert means == {
        "accuracy": 0.75,
        "auc": 0.5,
        "accuracy_a": 0.5,
        "accuracy_b": 1.0,
        "auc_a": 1.0,
        "auc_b": 0.0,
    }


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match="training: given steps 0"):
        train_fresh(NETWORKS["mlp"], blobs(8, 0), Training(steps=0))


def test_several_fresh_networks_are_averaged() -> None:
    data = blobs(12, 0)
    short = Training(steps=2, batch_size=4)
    found = evaluate(NETWORKS, data, blobs(40, 1), short, repeats={"mlp": 3})
    alone = evaluate(NETWORKS, data, blobs(40, 1), short)
    assert found["linear"] == alone["linear"]
    assert found["mlp"]["nll"] != alone["mlp"]["nll"]
    again = evaluate(NETWORKS, data, blobs(40, 1), short, repeats={"mlp": 3})
    assert found == again


def test_validation_chooses_the_epoch_and_test_samples_do_not() -> None:
    data, held_out = blobs(40, 0), blobs(40, 1)
    # The labels are wrong, so that every epoch takes accuracy away.
    wrong = Split(data.input, 1 - data.labels, data.id)
    slow = OptimizerSettings(lr=1e-3, schedule="constant")
    trainings = {steps: Training(steps=steps, batch_size=8, optimizer=slow) for steps in (50, 100, 150)}
    found = {
        steps: logits_of(train_fresh(NETWORKS["mlp"], wrong, one, seed=2), held_out) for steps, one in trainings.items()
    }
    right = {steps: float((one.argmax(-1) == held_out.labels).double().mean()) for steps, one in found.items()}
    assert right[50] > right[150]
    chosen = train_fresh(NETWORKS["mlp"], wrong, trainings[150], seed=2, validation=held_out)
    assert torch.equal(logits_of(chosen, held_out), found[50])
