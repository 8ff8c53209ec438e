"""Networks for pictures and texts: two encoders with a common space, and a fusion encoder that reads both.

Two encoders and two projections are a small CLIP. With a fusion encoder the same network also judges single pairs (does
this text fit this picture?) and fills in masked words, as ALBEF and BLIP do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError


class VisionLanguage(nn.Module):
    """Any image encoder, any text encoder, and what joins them; the parts of other frameworks go in as they are.

    Args:
        image: ``pixel_values -> tokens [B, N, W]`` with the class token first, or an output with ``last_hidden_state``
            (transformers' ``ViTModel``).
        text: ``(input_ids, attention_mask) -> tokens [B, L, W]`` or such an output (transformers' ``BertModel``).
        image_projection, text_projection: from a first token to the common space.
        fusion: ``(tokens, attention_mask, image_tokens) -> tokens`` (our ``FusionEncoder``; ``hf_fusion.BertFusion``).
        matching: from a fused first token to two logits, "no" and "yes"; a linear layer by default.
        words: from fused tokens to logits of the vocabulary.
        temperature: where the learned scalar begins. temperature_limits: :meth:`clamp_temperature` keeps it inside.
    """

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        image_projection: nn.Module,
        text_projection: nn.Module,
        *,
        fusion: nn.Module | None = None,
        matching: nn.Module | None = None,
        words: nn.Module | None = None,
        temperature: float = 0.07,
        temperature_limits: tuple[float, float] = (0.001, 0.5),
    ) -> None:
        super().__init__()
        low, high = temperature_limits
        if not 0 < low <= temperature <= high:
            raise UserError("temperature", temperature, f"{low} to {high}, its limits, which are positive")
        if fusion is None and (matching is not None or words is not None):
            raise UserError("fusion", "none", "a fusion encoder, whose tokens the heads read")
        if fusion is not None and matching is None:
            width = getattr(text_projection, "in_features", None)
            if width is None:
                raise UserError("matching", "none", "a head, since the width is not to be seen from text_projection")
            matching = nn.Linear(width, 2)
        self.image, self.text = image, text
        self.image_projection, self.text_projection = image_projection, text_projection
        self.fusion, self.matching, self.words = fusion, matching, words
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.temperature_limits = temperature_limits

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Unit vectors ``image`` and ``text`` ``[B, D]`` of pairs, and the scalar ``temperature``."""
        image = self.embed_image(self.image_tokens(pixel_values))
        text = self.embed_text(self.text_tokens(input_ids, attention_mask))
        return {"image": image, "text": text, "temperature": self.temperature}

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """``[B, N, W]``."""
        return _tokens(self.image(pixel_values))

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``[B, L, W]``."""
        return _tokens(self.text(input_ids, attention_mask))

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of image tokens."""
        return functional.normalize(self.image_projection(tokens[:, 0]), dim=-1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of text tokens."""
        return functional.normalize(self.text_projection(tokens[:, 0]), dim=-1)

    def fuse(self, text_tokens: Tensor, attention_mask: Tensor | None, image_tokens: Tensor) -> Tensor:
        """Text tokens that have seen the image, ``[B, L, W]``."""
        return _tokens(_part(self.fusion, "fusion")(text_tokens, attention_mask, image_tokens))

    def match(self, fused: Tensor) -> Tensor:
        """Logits ``[B, 2]`` of "does not fit" and "fits"."""
        logits: Tensor = _part(self.matching, "matching")(fused[:, 0])
        return logits

    def predict_words(self, fused: Tensor) -> Tensor:
        """Logits of the vocabulary, for whatever tokens are given."""
        logits: Tensor = _part(self.words, "words")(fused)
        return logits

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the learned temperature back inside its limits; called before every step."""
        self.temperature.clamp_(*self.temperature_limits)


def _part(module: nn.Module | None, name: str) -> nn.Module:
    if module is None:
        raise UserError(name, "none", f"a network with a {name} part")
    return module


def _tokens(output: Any) -> Tensor:
    tokens = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        given = list(tokens.shape) if isinstance(tokens, Tensor) else type(output).__name__
        raise UserError("encoder output", given, "tokens [B, L, W], or an output with last_hidden_state")
    return tokens
