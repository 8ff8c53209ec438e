from __future__ import annotations

import torch
from torch import nn

from limbeck.nn.mode import held


def test_held_weights_let_the_gradient_through_to_the_input() -> None:
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    x = torch.ones(1, 3, requires_grad=True)
    with held(network.parameters()):
        output = network(x)
    output.sum().backward()
    torch.testing.assert_close(x.grad, network.weight.detach().sum(0, keepdim=True))
    assert network.weight.grad is None
    assert (network.weight.requires_grad, network.bias.requires_grad) == (True, False)
