"""The two-player step: opposite signs on one graph, as two passes would give."""

from __future__ import annotations

import torch

from limbeck.engine.min_max import min_max_step


def game(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return (low * high).sum() + low.square().sum() - high.square().sum()


def test_both_move_by_the_gradient_at_the_same_point() -> None:
    low, high = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.5, -1.0], requires_grad=True)
    down, up = torch.autograd.grad(game(low, high), (low, high))
    expected = low - 0.1 * down, high + 0.3 * up
    min_max_step(game(low, high), torch.optim.SGD([low], 0.1), torch.optim.SGD([high], 0.3))
    torch.testing.assert_close(low, expected[0])
    torch.testing.assert_close(high, expected[1])


def test_two_backward_passes_over_a_retained_graph_give_the_same() -> None:
    starts = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    ours = [one.clone().requires_grad_() for one in starts]
    theirs = [one.clone().requires_grad_() for one in starts]
    for _ in range(5):
        min_max_step(game(*ours), torch.optim.Adam([ours[0]], 0.1), torch.optim.SGD([ours[1]], 0.1))
        value = game(*theirs)
        (down,) = torch.autograd.grad(value, theirs[0], retain_graph=True)
        (up,) = torch.autograd.grad(-value, theirs[1])
        for optimizer, one, slope in (
            (torch.optim.Adam([theirs[0]], 0.1), theirs[0], down),
            (torch.optim.SGD([theirs[1]], 0.1), theirs[1], up),
        ):
            one.grad = slope
            optimizer.step()
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)


def test_one_player_alone_is_a_plain_step() -> None:
    low = torch.tensor([1.0], requires_grad=True)
    min_max_step(low.square().sum(), torch.optim.SGD([low], 0.25), None)
    assert low.item() == 0.5
