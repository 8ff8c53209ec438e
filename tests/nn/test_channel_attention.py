"""Attention blocks of maps: what they may see, and what they may not."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.nn.channel_attention import SSPCAB, RowSoftmaxGate, SqueezeExcite


def maps(channels: int = 8, side: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_sspcab_sees_its_four_diagonal_neighbours_and_never_itself() -> None:
    torch.manual_seed(0)
    block, given = SSPCAB(8), maps().requires_grad_()
    block.predict(given)[0, :, 3, 4].sum().backward()
    assert given.grad is not None
    seen = given.grad[0].abs().sum(0) > 0
    assert {tuple(place) for place in seen.nonzero().tolist()} == {(1, 2), (1, 6), (5, 2), (5, 6)}


def test_sspcab_output_does_not_change_with_its_own_position() -> None:
    block, given = SSPCAB(8).eval(), maps()
    changed = given.clone()
    changed[:, :, 3, 4] += 10
    before, after = block.predict(given), block.predict(changed)
    assert torch.equal(before[:, :, 3, 4], after[:, :, 3, 4])
    assert not torch.equal(before, after)


def test_sspcab_is_blind_on_two_cells() -> None:
    block = SSPCAB(8)
    assert torch.equal(block(maps(side=2)), block(5 * maps(side=2)))


def test_squeeze_excite_scales_each_channel_by_less_than_one() -> None:
    given = maps().abs() + 0.1
    ratio = SqueezeExcite(8)(given).detach() / given
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert 0 < float(ratio.min()) <= float(ratio.max()) < 1


@pytest.mark.parametrize(("kernel_size", "layers"), [(1, 2), (3, 1)])
def test_a_gate_gives_every_row_one_unit(kernel_size: int, layers: int) -> None:
    torch.manual_seed(0)
    gate, given = RowSoftmaxGate(8, kernel_size, layers), maps()
    share = gate(given) / gate.value(given)
    share = torch.where(gate.value(given) > 0, share, gate.gate(gate.value(given)).softmax(-1))
    torch.testing.assert_close(share.sum(-1), torch.ones(2, 8, 8))


def test_even_kernels_are_refused() -> None:
    with pytest.raises(UserError, match="odd"):
        RowSoftmaxGate(8, 2)
