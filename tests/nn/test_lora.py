from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.diffusion.unet import SmallUNet
from limbeck.errors import UserError
from limbeck.nn.lora import LoRA

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
T, LABELS = torch.tensor([3, 500]), torch.tensor([0, 1])
EVERY = ("to_q", "to_k", "to_v", "to_out", "conv1", "conv2", "conv_in", "down.0.1")


def network() -> SmallUNet:
    torch.manual_seed(0)
    made = SmallUNet(8, (1, 2)).eval()
    for parameter in made.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return made


def moved(lora: LoRA) -> LoRA:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in lora.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return lora


@torch.no_grad()
def test_at_the_start_and_when_off_the_network_is_itself_bit_for_bit() -> None:
    model = network()
    before, names = model(X, T, LABELS), set(model.state_dict())
    lora = LoRA(model, EVERY, rank=4)
    assert torch.equal(model(X, T, LABELS), before)
    moved(lora)
    assert not torch.allclose(model(X, T, LABELS), before, atol=1e-3)
    with lora.off():
        assert torch.equal(model(X, T, LABELS), before)
    assert lora.enabled
    with pytest.raises(RuntimeError), lora.off():
        raise RuntimeError
    assert lora.enabled, "adapters that stay off after an error would train nothing"
    assert set(model.state_dict()) == names
    lora.remove()
    assert torch.equal(model(X, T, LABELS), before)


@torch.no_grad()
def test_merged_weights_say_the_same_on_linear_and_strided_convolution_layers() -> None:
    model = network()
    lora = moved(LoRA(model, EVERY, rank=3, alpha=6.0))
    assert lora.scale == 2.0
    merged = lora.merged()
    torch.testing.assert_close(merged(X, T, LABELS), model(X, T, LABELS), atol=1e-5, rtol=1e-5)
    with lora.off():
        assert not torch.allclose(merged(X, T, LABELS), model(X, T, LABELS), atol=1e-3)
    assert not any(module._forward_hooks for module in merged.modules())


def test_only_the_factors_learn() -> None:
    model = network()
    lora = moved(LoRA(model, rank=2))
    assert {path.rpartition(".")[2] for path in lora.paths} == {"to_q", "to_v"}
    model(X, T, LABELS).square().mean().backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in lora.parameters())
    assert set(lora.state_dict()) == {f"{side}.{i}" for side in ("down", "up") for i in range(len(lora.paths))}


def test_refusals() -> None:
    with pytest.raises(UserError, match="to_q"):
        LoRA(network(), ("to_x",))
    with pytest.raises(UserError, match="rank"):
        LoRA(network(), rank=0)
    with pytest.raises(UserError, match="norm1"):
        LoRA(network(), ("norm1",))
    with pytest.raises(UserError, match="merged"):
        copy.deepcopy(LoRA(network()))
