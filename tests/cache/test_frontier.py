from __future__ import annotations

import pytest
import torch

from limbeck.cache.codecs import codec
from limbeck.cache.frontier import CODECS, Frontier
from limbeck.signals import SparseLogits


def test_divergence_and_bytes_are_those_of_the_decoded_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(700, 900, generator=generator) * 3
    logits[:, 800:] = -torch.inf
    names = ["above:0.01:64", "packed:32", "topk:32:bfloat16", "topk:900", "float16"]
    frontier = Frontier(names)
    frontier.add(logits.reshape(7, 100, 900), torch.ones(7, 100).bool())
    points = {point.codec: point for point in frontier.points()}
    teacher = logits.double().log_softmax(-1)
    for name in names:
        decoded = codec(name).roundtrip(logits)
        dense = decoded.to_dense() if isinstance(decoded, SparseLogits) else decoded.log_softmax(-1)
        ratio = torch.where(teacher.isneginf(), 0.0, teacher - dense.double())
        assert points[name].kl == pytest.approx(float((teacher.exp() * ratio).sum(-1).mean()), abs=2e-5)
        assert points[name].bytes == sum(part.nbytes for part in codec(name).encode(logits).values()) / 700
    assert points["topk:32:bfloat16"].bytes == 32 * 4 + 4
    assert 1 <= points["above:0.01:64"].classes <= 64
    assert points["packed:32"].classes == 32
    assert points["topk:900"].kept == pytest.approx(1)
    assert [point.bytes for point in frontier.points()] == sorted(point.bytes for point in points.values())


def test_masked_rows_are_left_out_and_the_usual_codecs_are_known() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    logits[3] = torch.nan
    masked, alone = Frontier(["packed:8"]), Frontier(["packed:8"])
    masked.add(logits, torch.tensor([True, True, True, False]))
    alone.add(logits[:3])
    assert masked.points() == alone.points()
    assert set(CODECS) == set(Frontier().codecs)
