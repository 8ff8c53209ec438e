from __future__ import annotations

import torch

from limbeck.data.views import epoch_seed, integers, mix, uniform, view_seeds


def test_mix_agrees_with_splitmix64() -> None:
    # The first outputs of SplitMix64 from state 0 and from state 1234567, by the published reference program.
    expected = {0: 0xE220A8397B1DCDAF, 1234567: 6457827717110365317}
    for state, value in expected.items():
        assert int(mix(torch.tensor(state))) % 2**64 == value


def test_seeds_depend_on_seed_epoch_and_id_alone() -> None:
    ids = torch.tensor([3, 1, 4, 1])
    views = view_seeds(0, 0, ids)
    assert views[1] == views[3]
    assert torch.equal(views[2:3], view_seeds(0, 0, torch.tensor([4])))
    for other in (view_seeds(1, 0, ids), view_seeds(0, 1, ids)):
        assert not (views == other).any()
    assert len({epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}) == 900


def test_draws_are_uniform_and_independent() -> None:
    views = view_seeds(0, 0, torch.arange(20000))
    first, second = uniform(views, 0), uniform(views, 1)
    for draw in (first, second):
        assert 0 <= draw.min() < 0.001
        assert 0.999 < draw.max() < 1
        # Five standard errors of the mean of 20,000 uniform numbers.
        assert abs(draw.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 20000**0.5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / 20000**0.5
    counts = torch.bincount(integers(views, 2, 9), minlength=9)
    assert len(counts) == 9
    assert (counts - 20000 / 9).abs().max() < 5 * (20000 / 9) ** 0.5
