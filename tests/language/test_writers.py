from __future__ import annotations

import pytest
import torch

from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language import (
    AdaptiveShare,
    DataText,
    Decoding,
    OnPolicy,
    ReplayBuffer,
    Replayed,
    Revised,
    Reviser,
    Sequences,
    Step,
    StoredText,
    answer_logits,
)
from limbeck.sources import Live
from limbeck.systems.language.multi_granularity.identities import END, PAD, network, texts

DECODING = Decoding(6, END, PAD)


def step(number: int = 0, progress: float = 0.0, teacher: bool = False) -> Step:
    ids = torch.arange(6)
    source = Live(network(1), forward=answer_logits) if teacher else None
    return Step(network(), source, texts(), view_seeds(0, number, ids), ids, progress)


def test_own_samples_keep_the_prompts_and_change_with_the_step() -> None:
    first, second = OnPolicy(DECODING)(step(0)), OnPolicy(DECODING)(step(1))
    assert torch.equal(first.prompt, texts().prompt)
    assert torch.equal(first.answer, OnPolicy(DECODING)(step(0)).answer)
    assert first.answer.shape != second.answer.shape or not torch.equal(first.answer, second.answer)
    assert DataText()(step()).answer is not None


def test_correction_needs_a_teacher_and_tells_what_it_did() -> None:
    writer = Revised(OnPolicy(DECODING), Reviser(DECODING))
    with pytest.raises(UserError, match="live"):
        writer(step())
    writer(step(teacher=True))
    assert set(writer.observed()) == {"changed", "relative_place", "divergence"}


def test_stored_text_is_found_by_id() -> None:
    stored = StoredText(texts(8, seed=5), torch.tensor([7, 6, 5, 4, 3, 2, 1, 0]))
    found = stored(step())
    assert torch.equal(
        found.answer[0][found.answer_mask[0]], texts(8, seed=5).answer[7][texts(8, seed=5).answer_mask[7]]
    )
    with pytest.raises(UserError, match="99"):
        stored(step()._replace(ids=torch.tensor([99])))


def test_the_buffer_forgets_the_oldest_and_comes_back() -> None:
    buffer = ReplayBuffer(8)
    for seed in range(3):
        buffer.add(texts(4, seed=seed))
    assert len(buffer) == 8
    assert buffer.full
    drawn = buffer.draw(view_seeds(0, 0, torch.arange(64)))
    kept = {
        tuple(one.answer[row][one.answer_mask[row]].tolist())
        for one in (texts(4, seed=1), texts(4, seed=2))
        for row in range(4)
    }
    assert {tuple(ids[mask].tolist()) for ids, mask in zip(drawn.answer, drawn.answer_mask)} == kept
    again = ReplayBuffer(8)
    again.load_state_dict(buffer.state_dict())
    assert torch.equal(again.draw(view_seeds(0, 0, torch.arange(64))).answer, drawn.answer)
    with pytest.raises(UserError, match="empty"):
        ReplayBuffer(2).draw(torch.arange(2))


class Counted(DataText):
    """Gives the data and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: Step) -> Sequences:
        self.calls += 1
        return super().__call__(step)


def test_ever_fewer_steps_write_anew() -> None:
    inner = Counted()
    writer = Replayed(inner, capacity=6)
    kinds = []
    for number in range(400):
        writer(step(number, progress=number / 400))
        kinds.append(writer.latest)
    early, late = kinds[1:200], kinds[200:]
    assert kinds[0] == "new"
    assert early.count("new") / len(early) == pytest.approx(0.75, abs=0.1)
    assert late.count("new") / len(late) == pytest.approx(0.25, abs=0.1)
    assert "data" not in kinds
    assert inner.calls == kinds.count("new")
    mixed = Replayed(Counted(), capacity=6, share=0.5)
    found = []
    for number in range(300):
        mixed(step(number, progress=0.5))
        found.append(mixed.latest)
    assert found.count("data") / 300 == pytest.approx(0.5, abs=0.1)
    assert found.count("old") / 300 == pytest.approx(0.25, abs=0.1)


def test_the_share_grows_when_validation_gets_worse() -> None:
    share = AdaptiveShare(tolerance=0.1)
    for loss in (2.0, 1.0, 2.05, 2.1):
        share.observe(loss)
    assert share.value == pytest.approx(0.1)
    # The next comparison is with the loss that made it grow.
    share.observe(2.15)
    assert share.value == pytest.approx(0.1)
    for loss in (3.0, 4.0):
        share.observe(loss)
    assert share.value == pytest.approx(0.3)
    state = Replayed(DataText(), 4, share).state_dict()
    other = Replayed(DataText(), 4, AdaptiveShare())
    other.load_state_dict(state)
    assert isinstance(other.share, AdaptiveShare)
    assert other.share.value == pytest.approx(0.3)
