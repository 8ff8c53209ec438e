from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.cache import write_cache
from limbeck.cache.codecs import codec
from limbeck.errors import UserError
from limbeck.language import answer_hidden, answer_logits
from limbeck.models.heads import read_head
from limbeck.nn.output_head import OutputHead
from limbeck.signals import HeadLogits
from limbeck.sources import Cached, HeadApplied, Live
from limbeck.systems.language.multi_granularity.identities import network, texts
from tests.sources.contract import check_source

BATCH = {**texts().batch(), "id": torch.arange(6)}


def cached(folder: Path, name: str) -> HeadApplied:
    teacher = network()
    write_cache(Live(teacher, forward=answer_hidden), [BATCH], folder / name, ("hidden",), name, ragged=("hidden",))
    teacher.save_pretrained(folder / "teacher")  # type: ignore[operator]
    return HeadApplied(Cached(folder / name), read_head(folder / "teacher"))


def test_the_contract_of_every_source() -> None:
    teacher = network()
    check_source(HeadApplied(Live(teacher, forward=answer_hidden), OutputHead.of(teacher)), BATCH, ("logits", "hidden"))


def test_a_lossless_cache_gives_the_live_logits_bit_for_bit(tmp_path: Path) -> None:
    mask = BATCH["mask"]
    found = cached(tmp_path, "float32")(BATCH, ("logits",))["logits"]
    teacher = network()
    live = HeadApplied(Live(teacher, forward=answer_hidden), OutputHead.of(teacher))(BATCH, ("logits",))["logits"]
    assert isinstance(found, torch.Tensor)
    assert isinstance(live, torch.Tensor)
    assert torch.equal(found[mask], live[mask])
    whole = Live(teacher, forward=answer_logits)(BATCH, ("logits",))["logits"]
    assert isinstance(whole, torch.Tensor)
    torch.testing.assert_close(found[mask], whole[mask], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_a_lossy_cache_differs_by_no_more_than_the_codec_times_the_head(tmp_path: Path, name: str) -> None:
    mask = BATCH["mask"]
    source = cached(tmp_path, name)
    found = source(BATCH, ("logits",))["logits"]
    hidden = answer_hidden(network(), BATCH)["hidden"][mask].detach()
    whole = answer_logits(network(), BATCH)["logits"][mask].detach()
    bound = codec(name).bound(hidden) @ source.head.weight.double().abs().t()
    difference = (found[mask] - whole).abs().double()  # type: ignore[index,operator]
    assert (difference <= bound + 1e-5).all()
    assert difference.max() > 0


def test_logits_can_wait_for_the_loss() -> None:
    teacher = network()
    source = HeadApplied(Live(teacher, forward=answer_hidden), OutputHead.of(teacher), whole=False)
    signals = source(BATCH, ("logits",))
    assert isinstance(signals["logits"], HeadLogits)
    assert not signals["logits"].weight.requires_grad
    assert set(source(BATCH)) == {"logits", "hidden"}
    assert set(source(BATCH, ("hidden",))) == {"hidden"}


def test_another_teachers_states_are_refused_and_another_head_is_another_teacher() -> None:
    live = Live(network(), forward=answer_hidden)
    with pytest.raises(UserError, match="hidden: given states of width 16; allowed: 8, the head's"):
        HeadApplied(live, OutputHead.of(network(width=8)))(BATCH, ("logits",))
    with pytest.raises(UserError, match="hidden: given logits"):
        HeadApplied(live, OutputHead.of(network()), hidden="logits")
    head = OutputHead.of(network())
    prints = {
        HeadApplied(live, one).fingerprint()
        for one in (head, OutputHead.of(network(1)), OutputHead(head.weight, cap=30.0))
    }
    assert len(prints) == 3
