from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel, UNet3DConditionModel
from torch import Tensor, nn

from limbeck.diffusion.adapters import SplitDiffusers, same_output
from limbeck.diffusion.denoiser import Guided, from_diffusers
from limbeck.diffusion.split import Counted, Encoded, SplitUNet, split, split_flops
from limbeck.diffusion.unet import SmallUNet
from limbeck.errors import UserError
from limbeck.measure import count_flops

SHAPE = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}


def seeded(build: Any) -> Any:
    torch.manual_seed(0)
    made = build().eval()
    for parameter in made.parameters():
        # Layers that start at zero would hide what reaches the output through them.
        nn.init.normal_(parameter, std=0.1)
    return made


def small() -> SmallUNet:
    return seeded(lambda: SmallUNet(8, (1, 2, 2)))


def text_unet(**more: Any) -> UNet2DConditionModel:
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **SHAPE,
            **more,
        )
    )


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randint(0, 1000, (shape[0],), generator=generator)


def test_small_unet_is_its_halves() -> None:
    network, (x, t), condition = small(), inputs(3, 1, 16, 16), torch.tensor([0, 4, 10])
    with torch.no_grad():
        encoded = network.encode(x, t, condition)
        assert torch.equal(network.decode(encoded, t, condition), network(x, t, condition))
        assert torch.equal(encoded.skips[0], network.conv_in(x)), "the first convolution's output is a skip"
        later = network.decode(encoded, t - t // 2, condition)
        assert not torch.allclose(later, network(x, t, condition)), "the decoder must hear its own time"
        other = network.decode(encoded, t, torch.tensor([1, 5, 6]))
        assert not torch.allclose(other, network(x, t, condition)), "and its own condition"
    assert split(network) is network
    assert isinstance(network, SplitUNet)


def test_small_unet_conditions() -> None:
    network, (x, t) = small(), inputs(2, 1, 16, 16)
    with torch.no_grad():
        null = network(x, t, torch.full((2,), network.null))
        assert torch.equal(network(x, t), null)
        assert torch.equal(network(x, t, network.condition(torch.full((2,), network.null))), null)
        assert torch.equal(network(x[:1], torch.tensor(5)), network(x[:1], torch.tensor([5])))


@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
def test_text_unet_of_diffusers(size: tuple[int, int]) -> None:
    network, (x, t) = text_unet(), inputs(2, 4, *size)
    text = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    assert same_output(network, x, t, text) == 0
    halves = split(network)
    with torch.no_grad():
        encoded = halves.encode(x, t, text)
        assert torch.equal(encoded.skips[0], network.conv_in(x))
        assert not torch.allclose(halves.decode(encoded, t // 2, text), network(x, t, text).sample)
        assert not torch.allclose(halves.decode(encoded, t, text + 1), network(x, t, text).sample)
        assert torch.equal(halves.decode(encoded.repeat(2).rows(2, 4), t, text), network(x, t, text).sample)


def test_arguments_of_the_class_reach_both_halves() -> None:
    network, (x, t) = text_unet(num_class_embeds=3), inputs(2, 4, 8, 8)
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "class_labels": torch.tensor([0, 2]),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    assert same_output(network, x, t, given) == 0


def test_control_net_residuals_are_in_the_skips() -> None:
    network, (x, t), text = text_unet(), inputs(2, 4, 8, 8), torch.randn(2, 5, 16)
    control = seeded(lambda: ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 16)))
    picture = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        down, middle = control(x, t, text, picture, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        given = {"encoder_hidden_states": text, **residuals}
        whole, halves = network(x, t, **given).sample, split(network)
        encoded = halves.encode(x, t, given)
        assert torch.equal(halves.decode(encoded, t, {"encoder_hidden_states": text}), whole)
        assert torch.equal(halves.decode(encoded, t, given), whole), "residuals must not be added twice"
        assert not torch.allclose(whole, network(x, t, text).sample)


def test_class_unet_of_diffusers() -> None:
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = seeded(
        lambda: UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, num_class_embeds=4, attention_head_dim=4, **kinds, **SHAPE
        )
    )
    x, t = inputs(3, 1, 8, 8)
    assert same_output(network, x, t, torch.tensor([0, 1, 3])) == 0
    guided = Guided(from_diffusers(network), 2.0, null=3)
    assert guided(x, t, torch.tensor([0, 1, 2])).shape == x.shape


def test_video_unet_of_diffusers() -> None:
    network = seeded(
        lambda: UNet3DConditionModel(
            sample_size=8,
            cross_attention_dim=16,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            **SHAPE,
        )
    )
    x, t = inputs(2, 4, 3, 8, 8)
    text = torch.randn(2, 5, 16)
    assert same_output(network, x, t, text) == 0
    halves = split(network)
    with torch.no_grad():
        encoded = halves.encode(x, t, text)
        assert len(encoded) == 2, "rows are samples, not frames"
        both = halves.decode(encoded.repeat(2), t.repeat(2), text.repeat(2, 1, 1))
        assert torch.allclose(both[2:], network(x, t, text).sample, atol=1e-5)


def test_the_network_itself_is_not_changed() -> None:
    network, (x, t), text = text_unet(), inputs(1, 4, 8, 8), torch.randn(1, 5, 16)
    parts, weights = dict(network._modules), {k: v.clone() for k, v in network.state_dict().items()}
    same_output(network, x, t, text)
    assert dict(network._modules) == parts
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items())
    assert "forward" not in vars(network)


def test_gradients_pass_through_both_halves() -> None:
    network, (x, t), text = text_unet(), inputs(1, 4, 8, 8), torch.randn(1, 5, 16)
    whole = torch.autograd.grad(network(x.requires_grad_(), t, text).sample.sum(), x)[0]
    halves = torch.autograd.grad(SplitDiffusers(network)(x, t, text).sum(), x)[0]
    torch.testing.assert_close(halves, whole)


def test_networks_without_halves_are_refused_by_name() -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=8, patch_size=2
    )
    with pytest.raises(UserError, match="DiTTransformer2DModel"):
        split(transformer)
    with pytest.raises(UserError, match="Conv2d"):
        split(nn.Conv2d(1, 1, 1))
    skips = UNet2DModel(
        down_block_types=("SkipDownBlock2D",),
        up_block_types=("SkipUpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
    )
    with pytest.raises(UserError, match="second chain"):
        split(skips)


def test_counts_and_flops() -> None:
    network, (x, t), condition = small(), inputs(4, 1, 16, 16), torch.arange(4)
    counted = Counted(network)
    with torch.no_grad():
        counted(x, t, condition)
        counted.decode(network.encode(x, t, condition).repeat(3), t.repeat(3), condition.repeat(3))
    counts = counted.counts
    assert (counts.encoder_calls, counts.encoder_rows) == (1, 4)
    assert (counts.decoder_calls, counts.decoder_rows) == (2, 16)
    cost = split_flops(network, x, t, condition)
    whole = count_flops(lambda: network(x, t, condition), network) / 4
    assert cost["encode"] + cost["decode"] == pytest.approx(whole, rel=1e-9)
    assert 0.15 < cost["encode"] / whole < 0.6


def test_encoded_copies_whole_batches() -> None:
    encoded = Encoded(torch.arange(2.0)[:, None], (torch.arange(2.0)[:, None, None],))
    assert encoded.repeat(2).hidden[:, 0].tolist() == [0, 1, 0, 1]
    assert encoded.bytes == 16
