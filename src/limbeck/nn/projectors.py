"""Projectors: small networks that bring a student's feature into the teacher's shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError


class TokenProjector(nn.Module):
    """``[..., D_in] -> [..., D_out]`` by a linear map, or by an MLP with GELU behind its ``hidden`` layers."""

    def __init__(self, student_width: int, teacher_width: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        widths = [student_width, *hidden]
        self.hidden = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in zip(widths, hidden)))
        self.linear = nn.Linear(widths[-1], teacher_width)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.linear(self.hidden(features))
        return projected


class MapProjector(nn.Module):
    """``[B, C_in, H, W] -> [B, C_out, H', W']`` by a 1x1 convolution, resized where the grids differ."""

    def __init__(self, student_channels: int, teacher_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.convolution, self.size = nn.Conv2d(student_channels, teacher_channels, 1), size

    def forward(self, features: Tensor) -> Tensor:
        features = self.convolution(features)
        if features.shape[-2:] == self.size:
            return features
        return functional.interpolate(features, size=self.size, mode="bilinear", align_corners=False)


class TokensToMap(nn.Module):
    """``[B, N, D] -> [B, C, H, W]``: tokens of a square grid (a class token in front is dropped) as a map."""

    def __init__(self, width: int, channels: int, size: tuple[int, int], tokens: int) -> None:
        super().__init__()
        self.side = int((tokens - 1) ** 0.5) if int(tokens**0.5) ** 2 != tokens else int(tokens**0.5)
        if self.side**2 not in (tokens, tokens - 1):
            raise UserError("projector", f"{tokens} tokens", "a square number of tokens, or one more")
        self.map = MapProjector(width, channels, size)

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tokens[:, -(self.side**2) :].transpose(1, 2).unflatten(2, (self.side, self.side))
        projected: Tensor = self.map(grid)
        return projected


class MapToTokens(nn.Module):
    """``[B, C, H, W] -> [B, N, D]``: a map, resized to the square token grid, read row by row.

    A teacher's class token, where ``N`` is one more than a square, is met by the mean of the map.
    """

    def __init__(self, channels: int, width: int, tokens: int) -> None:
        super().__init__()
        side = int(tokens**0.5)
        self.extra = tokens - side**2
        if self.extra > 1:
            raise UserError("projector", f"{tokens} tokens", "a square number of tokens, or one more")
        self.map = MapProjector(channels, width, (side, side))

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.map(features).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) if self.extra else tokens


def projector_for(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """A projector from one batch of student features to the teacher's shape, both with the batch axis first.

    Two or three axes are vectors and tokens (features last), four are channel-first maps.
    """
    ours, theirs = len(student), len(teacher)
    if ours == theirs and ours in (2, 3) and tuple(student[:-1]) == tuple(teacher[:-1]):
        return TokenProjector(student[-1], teacher[-1])
    if ours == theirs == 4:
        return MapProjector(student[1], teacher[1], (teacher[2], teacher[3]))
    if ours == 3 and theirs == 4:
        return TokensToMap(student[2], teacher[1], (teacher[2], teacher[3]), student[1])
    if ours == 4 and theirs == 3:
        return MapToTokens(student[1], teacher[2], teacher[1])
    raise UserError(
        "projector",
        f"student {list(student)}, teacher {list(teacher)}",
        "vectors, token sequences of one length, or channel-first maps",
        "give a projector module of your own",
    )
