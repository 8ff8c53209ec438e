"""Small networks of several makers, and what is where in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 30}
    return BertModel(BertConfig(num_hidden_layers=3, max_position_embeddings=16, **sizes)).eval()


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return ViTModel(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_hidden_layers=3, **sizes)).eval()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=30, n_positions=16)).eval()


def resnet() -> nn.Module:
    from limbeck.models.timm import import_timm

    torch.manual_seed(0)
    return import_timm().create_model("resnet10t", num_classes=5, in_chans=1).eval()


class UNet(nn.Module):
    """Stages named as those of diffusers: blocks of resnets and samplers, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(1, 4, 3, padding=1)
        self.down_blocks = nn.ModuleList([self.block(4, 8), self.block(8, 8)])
        self.mid_block = self.block(8, 8)
        self.up_blocks = nn.ModuleList([self.block(8, 8), self.block(8, 4)])
        self.conv_out = nn.Conv2d(4, 1, 3, padding=1)

    @staticmethod
    def block(channels: int, out: int) -> nn.Module:
        return nn.ModuleDict({"resnets": nn.ModuleList([nn.Conv2d(channels, out, 1), nn.Conv2d(out, out, 1)])})

    def forward(self, sample: Tensor) -> dict[str, Tensor]:
        x = self.conv_in(sample)
        for block in [*self.down_blocks, self.mid_block, *self.up_blocks]:
            for layer in block["resnets"]:
                x = layer(x)
        return {"sample": self.conv_out(x)}


IMAGE = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = {"input_ids": torch.arange(10).view(2, 5)}
CASES: dict[str, tuple[Callable[[], nn.Module], Any, str, list[int], str, str, str]] = {
    # network, input, a tap, its shape, a block's pattern, the last stage, the embedding layer
    "plain": (plain, torch.ones(2, 4), "2", [2, 6], "*", "", ""),
    "bert": (bert, TOKENS, "encoder.layer.1", [2, 5, 8], "encoder.layer.*", "encoder.layer.2",
             "embeddings.word_embeddings"),
    "vit": (vit, IMAGE[:, :, :8, :8], "embeddings.patch_embeddings.projection", [2, 8, 2, 2], "", "", ""),
    "gpt2": (gpt2, TOKENS, "transformer.h.0.mlp", [2, 5, 8], "transformer.h.*", "transformer.h.2", "transformer.wte"),
    "resnet": (resnet, IMAGE, "layer2.0.conv1", [2, 128, 4, 4], "layer?", "", ""),
    "unet": (UNet, IMAGE, "mid_block.resnets.1", [2, 8, 32, 32], "", "", "conv_in"),
}  # fmt: skip


def call(model: nn.Module, given: Any) -> Any:
    return model(**given) if isinstance(given, dict) else model(given)
