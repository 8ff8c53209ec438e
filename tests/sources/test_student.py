from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.schedules import Cosine, Linear
from limbeck.sources.student import EMA, Snapshot
from tests.sources.contract import check_source
from tests.sources.helpers import NEEDS, Network, batch, trained

TAPS = {"middle": "middle"}


@pytest.mark.parametrize("kind", [EMA, Snapshot])
def test_the_contract_of_every_source(kind: Any) -> None:
    student = Network()
    check_source(kind(student, taps=TAPS), batch(), NEEDS)
    assert student.training


@pytest.mark.parametrize("kind", [EMA, Snapshot])
def test_the_student_does_not_write_into_the_shadow_s_taps(kind: Any) -> None:
    student = Network()
    source = kind(student, taps=TAPS)
    with source.live.taps.capture() as signals:
        student(batch()["input"])
    assert signals == {}


def test_an_average_moves_after_each_step_by_its_momentum() -> None:
    student = Network()
    source, expected = EMA(student, 0.8), copy.deepcopy(student)
    for step in range(1, 4):
        trained(student, 1)
        source.after_epoch(student, step)
        source.after_step(student, step)
        for old, new in zip(expected.parameters(), student.parameters(), strict=True):
            old.data = 0.8 * old.data + 0.2 * new.data
    for ours, theirs in zip(source.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not ours.requires_grad
    # BatchNorm statistics are the student's by default.
    assert torch.equal(source.model.norm[0].running_mean, student.norm[0].running_mean)


def test_an_average_by_epoch_waits_for_the_epoch() -> None:
    student = Network()
    source = EMA(student, 0.5, every="epoch")
    start = source.model.head.weight.clone()
    trained(student)
    source.after_step(student, 1)
    assert torch.equal(source.model.head.weight, start)
    source.after_epoch(student, 1)
    torch.testing.assert_close(source.model.head.weight, 0.5 * start + 0.5 * student.head.weight)


def test_a_momentum_schedule_goes_by_updates() -> None:
    student = Network()
    source = EMA(student, Linear(0.0, 1.0), steps=4)
    start = source.model.head.weight.clone()
    trained(student)
    source.after_step(student, 1)
    torch.testing.assert_close(source.model.head.weight, 0.25 * start + 0.75 * student.head.weight)


def test_an_average_of_another_kind_of_network_needs_a_name_map() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Network()

    source = EMA(Network(), 0.0)
    with pytest.raises(UserError, match="weight middle.weight: given middle.weight; allowed: encoder.middle.weight"):
        source.after_step(Wrapped(), 1)
    student = Wrapped()
    trained(student.encoder)
    source = EMA(student.encoder, 0.0)
    named = EMA(Network(), 0.0, names=lambda name: name)
    named.after_step(student.encoder, 1)
    assert torch.equal(named.model.head.weight, student.encoder.head.weight)
    assert torch.equal(source.model.head.weight, student.encoder.head.weight)


def test_a_snapshot_is_an_earlier_self() -> None:
    student = Network()
    source = Snapshot(student, every=2)
    weights = [student.head.weight.clone()]
    for epoch in range(1, 5):
        trained(student)
        source.after_step(student, epoch)
        source.after_epoch(student, epoch)
        weights.append(student.head.weight.clone())
        assert torch.equal(source.model.head.weight, weights[epoch // 2 * 2])
    never = Snapshot(student, every=0)
    trained(student)
    never.after_epoch(student, 5)
    assert torch.equal(never.model.head.weight, weights[4])


@pytest.mark.parametrize("kind", [EMA, Snapshot])
def test_a_saved_state_goes_on_where_it_was(kind: Any) -> None:
    def steps(student: nn.Module, source: Any, numbers: range) -> None:
        for number in numbers:
            trained(student, 1)
            source.after_step(student, number)
            source.after_epoch(student, number)

    student = Network()
    source = kind(student)
    steps(student, source, range(1, 3))
    saved, weights = copy.deepcopy(source.state_dict()), copy.deepcopy(student.state_dict())
    steps(student, source, range(3, 5))
    other = Network(seed=1)
    resumed = kind(other)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    steps(other, resumed, range(3, 5))
    for ours, theirs in zip(resumed.model.state_dict().values(), source.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_fingerprint_knows_the_rule() -> None:
    student = Network()
    sources = [
        EMA(student), EMA(student, 0.9), EMA(student, every="epoch"), EMA(student, buffers="keep"),
        EMA(student, Linear(0.9, 1.0), steps=10), EMA(student, Linear(0.9, 1.0), steps=20),
        EMA(student, Cosine(0.9, 1.0), steps=10), Snapshot(student), Snapshot(student, every=0),
        Snapshot(student, taps=TAPS),
    ]  # fmt: skip
    prints = [source.fingerprint() for source in sources]
    assert len(set(prints)) == len(prints)
    assert EMA(Network(seed=1)).fingerprint() == prints[0]


def test_bad_settings_are_refused() -> None:
    student = Network()
    with pytest.raises(UserError, match="every: given batch; allowed: step, epoch"):
        EMA(student, every="batch")
    with pytest.raises(UserError, match="momentum: given 1.5; allowed: 0 to 1"):
        EMA(student, 1.5)
    with pytest.raises(UserError, match="steps: given None.*a momentum schedule needs"):
        EMA(student, Linear(0.9, 1.0))
    with pytest.raises(UserError, match="every: given -1"):
        Snapshot(student, every=-1)
    with pytest.raises(UserError, match="buffers: given move"):
        EMA(student, buffers="move")
