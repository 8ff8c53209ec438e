"""Small reference networks: fast on one CPU thread, with stages whose names make good taps.

| network | parameters (10 classes) | for |
|---|---|---|
| ``small_cnn("4k")`` ... ``("300k")`` | 4 thousand to 300 thousand | grey 28 x 28 and 8 x 8 images |
| ``ResNetCIFAR(depth, width)`` | 20 thousand (8, 8) to 0.86 M (56, 16) | 32 x 32 colour images |
| ``MLP`` | any | flat features |
| ``BagOfEmbeddings``, ``TinyTransformer`` | any | token classification baselines on texts |

All take a float tensor (the text networks ``input_ids`` and ``attention_mask``) and return logits
``[B, classes]``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError

#: Channels per stage of the named sizes of :func:`small_cnn`.
SMALL_CNNS = {"4k": (8, 16, 16), "16k": (8, 16, 32, 32), "70k": (16, 32, 64, 80), "300k": (16, 64, 128, 176)}


class SmallCNN(nn.Module):
    """Stages of convolution, BatchNorm and ReLU with 2 x 2 max pooling between them; mean over space; linear
    head.

    Taps: ``stages.0`` ... ``stages.N`` (feature maps ``[B, channels[i], H, W]``), ``pool``
    (``[B, channels[-1]]``), ``head`` (logits).

    Args:
        channels: width of every stage; the map is halved between stages.
        classes: number of logits.
        in_channels: colours of the image.
        size: height and width of the image, to refuse one that the pooling would make vanish.
    """

    def __init__(self, channels: Sequence[int], classes: int = 10, in_channels: int = 1, size: int = 28) -> None:
        super().__init__()
        if not channels or size < 2 ** (len(channels) - 1):
            raise UserError("channels", list(channels), f"1 to {size.bit_length()} stages for images of {size} pixels")
        widths = [in_channels, *channels]
        self.stages = nn.Sequential(*(_stage(a, b, i > 0) for i, (a, b) in enumerate(zip(widths, channels))))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels[-1], classes)
        # A training step on the CPU then takes two thirds of the time: pooling and BatchNorm run along channels.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``images`` ``[B, in_channels, size, size]``."""
        logits: Tensor = self.head(self.pool(self.stages(images)))
        return logits


def small_cnn(name: str, classes: int = 10, in_channels: int = 1, size: int = 28) -> SmallCNN:
    """The :class:`SmallCNN` of ``4k``, ``16k``, ``70k`` or ``300k`` parameters (at 10 classes)."""
    if name not in SMALL_CNNS:
        raise UserError("small_cnn", name, SMALL_CNNS)
    return SmallCNN(SMALL_CNNS[name], classes, in_channels, size)


class MLP(nn.Module):
    """Linear layers with ReLU between them, on flattened input. Taps: ``layers.0`` ..., ``head``.

    Args:
        features: numbers per sample after flattening.
        hidden: width of every hidden layer; empty for a linear classifier.
        classes: number of logits.
    """

    def __init__(self, features: int, hidden: Sequence[int] = (64,), classes: int = 10) -> None:
        super().__init__()
        widths = [features, *hidden]
        blocks = (nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, hidden))
        self.layers = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, values: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``values`` ``[B, ...]`` with ``features`` numbers each."""
        logits: Tensor = self.head(self.layers(values.flatten(1)))
        return logits


class ResNetCIFAR(nn.Module):
    """The CIFAR ResNet of He et al. (arXiv:1512.03385, section 4.2) with projection shortcuts.

    Taps: ``stem``, ``stage1``, ``stage2``, ``stage3`` (maps of 32, 16 and 8 pixels), ``stage3.2`` (a block),
    ``pool`` (``[B, 4 * width]``), ``head``.

    Args:
        depth: 8, 14, 20, ... 56: six layers per block triple, and two.
        width: channels of the first stage; the others have two and four times as many.
        classes: number of logits.
        in_channels: colours of the image.
    """

    def __init__(self, depth: int = 20, width: int = 16, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise UserError("depth", depth, "6 n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56, ...")
        self.stem = _conv_norm(in_channels, width)
        self.stage1 = _residual_stage(width, width, blocks, stride=1)
        self.stage2 = _residual_stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _residual_stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``images`` ``[B, in_channels, H, W]``."""
        maps = self.stage3(self.stage2(self.stage1(functional.relu(self.stem(images)))))
        logits: Tensor = self.head(self.pool(maps))
        return logits


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(in_channels, channels, stride=stride)
        self.second = _conv_norm(channels, channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else _conv_norm(in_channels, channels, kernel=1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same or half the size."""
        return functional.relu(self.second(functional.relu(self.first(maps))) + self.shortcut(maps))


class BagOfEmbeddings(nn.Module):
    """Mean of the embeddings of the tokens that count, and an MLP: the smallest text classifier worth
    distilling into.

    Taps: ``embedding`` (per token), ``classifier.layers.0``, ``classifier.head``.
    """

    def __init__(self, vocabulary: int, width: int = 64, hidden: Sequence[int] = (), classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.classifier = MLP(width, hidden, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``[B, classes]`` of ``input_ids`` ``[B, L]``; the mask is 1 where a token counts."""
        logits: Tensor = self.classifier(_masked_mean(self.embedding(input_ids), attention_mask))
        return logits


class TinyTransformer(nn.Module):
    """A transformer encoder from scratch (one layer by default), mean of the tokens, linear head.

    Taps: ``embedding``, ``encoder.layers.0`` ..., ``head``. Dropout is 0 by default, so that a run is its
    seed.

    Args:
        vocabulary: number of token ids.
        width: of the hidden states; ``heads`` must divide it.
        layers, heads: of the encoder.
        classes: number of logits.
        max_length: longest text, in tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
        classes: int = 2,
        max_length: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError("heads", heads, f"a divisor of the width, {width}")
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(max_length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``[B, classes]`` of ``input_ids`` ``[B, L]``; see :class:`BagOfEmbeddings`."""
        length = input_ids.shape[1]
        if length > len(self.position):
            raise UserError("input_ids", f"{length} tokens", f"at most max_length, {len(self.position)}")
        padding = None if attention_mask is None else attention_mask == 0
        hidden = self.encoder(self.embedding(input_ids) + self.position[:length], src_key_padding_mask=padding)
        logits: Tensor = self.head(_masked_mean(hidden, attention_mask))
        return logits


def _stage(in_channels: int, channels: int, pooled: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(pool=nn.MaxPool2d(2)) if pooled else OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    layers["norm"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _conv_norm(in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels)))


def _residual_stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, 1) for _ in range(blocks - 1)))


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(dim=1)
    weight = mask.unsqueeze(-1).to(values.dtype)
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
