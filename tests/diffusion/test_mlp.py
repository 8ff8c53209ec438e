from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.mlp import MLPDenoiser
from limbeck.errors import UserError


def test_time_and_condition_reach_the_output_and_none_is_null() -> None:
    torch.manual_seed(0)
    network, x = MLPDenoiser(2, 16, 2, classes=3), torch.randn(4, 2)
    t, labels = torch.tensor([0, 1, 500, 999]), torch.tensor([0, 1, 2, 0])
    output = network(x, t, labels)
    assert output.shape == (4, 2)
    assert not torch.allclose(network(x, t + 0.5, labels), output)
    assert not torch.allclose(network(x, t, labels.flip(0)), output)
    assert torch.equal(network(x, t), network(x, t, torch.full((4,), network.null)))
    with pytest.raises(UserError):
        MLPDenoiser(2, 15)
