"""A promptable segmenter in SAM's three parts, at any size: image encoder, prompt encoder, mask decoder.

    embedding = encoder(images)                     [B, C, h, w]        heavy, once per image
    tokens    = prompt_encoder(points, labels)      [B, P, N, C]        points and boxes, P prompts per image
    masks     = decoder(embedding, tokens)          [B, P, 4, 4h, 4w]   light, once per prompt

The first of the four masks answers prompts that say what is meant (boxes), the other three those that do not (a
point); each has a predicted IoU. Prompt encoder and decoder have the names and shapes of SAM's own weights, so that
published ones load (:mod:`limbeck.models.mobile_sam`); any module that returns the right embedding can be the encoder.

Source: Kirillov et al., Segment Anything, ICCV 2023.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.data.prompts import CORNER, NOTHING
from limbeck.errors import UserError

MASKS = 4


class SegmentAnything(nn.Module):
    """See the module. ``encoder`` may be exchanged for any other with the same output (:func:`limbeck.taps.swap`).

    Args:
        encoder: images ``[B, 3, H, W]`` -> ``[B, width, h, w]``.
        width: channels of the embedding.
        heads, hidden: of the decoder's attention and of its MLPs.
    """

    def __init__(self, encoder: nn.Module, *, width: int = 256, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.image_encoder = encoder
        self.prompt_encoder = PromptEncoder(width)
        self.mask_decoder = MaskDecoder(width, heads, hidden)

    def forward(
        self, image: Tensor, points: Tensor, labels: Tensor, embedding: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Masks for prompts.

        Args:
            image: ``[B, 3, H, W]``; of a given ``embedding`` only its size counts.
            points: ``[B, P, N, 2]``, (x, y) in pixels of the image, whole numbers being pixels' corners.
            labels: int64 ``[B, P, N]``: 1 foreground, 0 background, 2 and 3 a box's two corners, -1 nothing.
            embedding: of the image, if it is known already.

        Returns:
            ``masks``: logits ``[B, P, 4, 4h, 4w]``; ``iou``: predicted ``[B, P, 4]``; ``candidates``: bool
            ``[B, P, 4]``, which of them may answer; ``embedding``: ``[B, C, h, w]``.
        """
        if embedding is None:
            embedding = self.image_encoder(image)
        return {**self.decode(embedding, points, labels, (image.shape[-2], image.shape[-1])), "embedding": embedding}

    def decode(self, embedding: Tensor, points: Tensor, labels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Masks and their IoU for prompts on an image of ``size`` (height, width) whose embedding is known."""
        if points.dim() != 4 or points.shape[:3] != labels.shape or len(points) != len(embedding):
            raise UserError(
                "points, labels", f"{list(points.shape)}, {list(labels.shape)}",
                f"[{len(embedding)}, P, N, 2] and [{len(embedding)}, P, N]: P prompts of N points for every image",
            )  # fmt: skip
        tokens = self.prompt_encoder(points, labels, size)
        dense, grid = self.prompt_encoder.dense(), self.prompt_encoder.grid(embedding.shape[-2:], embedding.device)
        masks, iou = self.mask_decoder(embedding + dense, tokens, grid)
        return {"masks": masks, "iou": iou, "candidates": candidates(labels)}


def candidates(labels: Tensor) -> Tensor:
    """Which of the four masks may answer a prompt, bool ``[..., 4]`` of labels ``[..., N]``: a box says what is meant,
    so the first; else the other three."""
    single = (labels == CORNER).any(-1, keepdim=True)
    return torch.cat([single, (~single).expand(*single.shape[:-1], MASKS - 1)], dim=-1)


class PromptEncoder(nn.Module):
    """Points to tokens: random Fourier features of the place, plus a learnt vector of what the point means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pe_layer = FourierPlaces(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)

    def forward(self, points: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``[..., N, C]`` of points ``[..., N, 2]`` on an image of ``size`` (height, width)."""
        scale = torch.tensor([size[1], size[0]], dtype=torch.float32, device=points.device)
        # SAM shifts to the middle of the pixel, corners of boxes too.
        places = self.pe_layer((points + 0.5) / scale)
        known = torch.where((labels == NOTHING)[..., None], 0.0, places)
        meanings = torch.cat([self.not_a_point_embed.weight, *(part.weight for part in self._points())])
        tokens: Tensor = known + meanings[labels + 1]
        return tokens

    def dense(self) -> Tensor:
        """What is added to an embedding without a mask prompt: ``[1, C, 1, 1]``."""
        return self.no_mask_embed.weight[:, :, None, None]

    def grid(self, size: torch.Size, device: torch.device) -> Tensor:
        """Places of an embedding's cells: ``[C, h, w]``."""
        rows, columns = ((torch.arange(count, device=device) + 0.5) / count for count in size)
        places = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), -1)
        grid: Tensor = self.pe_layer(places).permute(2, 0, 1)
        return grid

    def _points(self) -> list[nn.Embedding]:
        return [part for part in self.point_embeddings if isinstance(part, nn.Embedding)]


class FourierPlaces(nn.Module):
    """Sines and cosines of random projections (Tancik et al., NeurIPS 2020) of places in [0, 1]."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, places: Tensor) -> Tensor:
        angles = 2 * math.pi * (2 * places - 1) @ self.positional_encoding_gaussian_matrix
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class MaskDecoder(nn.Module):
    """Two-way attention between tokens and image, then a mask per mask token: the token's MLP dotted with the map."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(width, heads, hidden)
        self.iou_token, self.mask_tokens = nn.Embedding(1, width), nn.Embedding(MASKS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2), LayerNorm2d(width // 4), nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(width, width, width // 8, 3) for _ in range(MASKS))
        self.iou_prediction_head = MLP(width, width, MASKS, 3)

    def forward(self, embedding: Tensor, tokens: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits ``[B, P, 4, 4h, 4w]`` and predicted IoU ``[B, P, 4]``.

        Args:
            embedding: ``[B, C, h, w]``. tokens: of the prompts, ``[B, P, N, C]``. grid: places of cells ``[C, h, w]``.
        """
        batch, prompts = tokens.shape[:2]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch * prompts, -1, -1)
        queries = torch.cat([own, tokens.flatten(0, 1)], dim=1)
        image = embedding.repeat_interleave(prompts, 0)
        queries, keys = self.transformer(image.flatten(2).transpose(1, 2), grid.flatten(1).T, queries)
        upscaled = self.output_upscaling(keys.transpose(1, 2).unflatten(2, embedding.shape[-2:]))
        weights = [mlp(queries[:, 1 + place]) for place, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("rmc,rchw->rmhw", torch.stack(weights, 1), upscaled)
        iou = self.iou_prediction_head(queries[:, 0])
        return masks.unflatten(0, (batch, prompts)), iou.unflatten(0, (batch, prompts))


class TwoWayTransformer(nn.Module):
    """Two blocks in which tokens look at each other and at the image, and the image at the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, first=place == 0) for place in range(depth))
        self.final_attn_token_to_image = Attention(width, heads, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``[R, T, C]`` and image ``[R, L, C]``; ``places`` ``[L, C]`` and the first tokens stand for where."""
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, places)
        seen = self.final_attn_token_to_image(queries + tokens, keys + places, keys)
        return self.norm_final_attn(queries + seen), keys


class TwoWayBlock(nn.Module):
    """Self-attention, tokens to image, MLP, image to tokens; a LayerNorm behind each."""

    def __init__(self, width: int, heads: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads, width)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.cross_attn_token_to_image = Attention(width, heads, width // 2)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(width, hidden), "lin2": nn.Linear(hidden, width)})
        self.cross_attn_image_to_token = Attention(width, heads, width // 2)

    def forward(self, queries: Tensor, keys: Tensor, meaning: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            # The queries are their own places here, and SAM drops the shortcut.
            queries = self.self_attn(queries, queries, queries)
        else:
            placed = queries + meaning
            queries = queries + self.self_attn(placed, placed, queries)
        queries = self.norm1(queries)
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + meaning, keys + places, keys))
        queries = self.norm3(queries + self.mlp["lin2"](self.mlp["lin1"](queries).relu()))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys + places, queries + meaning, queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        if inner % heads:
            raise UserError("heads", heads, f"a divisor of the attention's width, {inner}")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        given = (self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in given)
        seen: Tensor = self.out_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return seen


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, rows: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            rows = layer(rows) if place == 0 else layer(rows.relu())
        return rows


class LayerNorm2d(nn.Module):
    """Normalise the channels of every pixel of ``[B, C, H, W]``."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), eps

    def forward(self, maps: Tensor) -> Tensor:
        rows = functional.layer_norm(maps.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return rows.movedim(-1, 1)


def neck(channels: int, width: int) -> nn.Sequential:
    """SAM's end of an encoder: to ``width`` channels, with a norm that fixes the embedding's scale."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width),
    )  # fmt: skip
