"""Who sees what of SmolLM2: the regimes of its testbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Recovery:
    """A short training of the cut student by forward KL to the live teacher, at every token behind the first.

    Attributes:
        steps, batch_size, learning_rate: of AdamW, up and down again.
        tokens: of a sentence. No sentence of a split begins like one of these.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    tokens: int = 24


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        layers: of the teacher's 30 that the student keeps.
        train, test: sentences. prompt, answer: tokens of each, the answer being what is predicted; longer sentences are
            cut, shorter ones left out, so that there is no padding.
        kept: tokens of the teacher's distribution that are cached.
        recovery: of the cut student; None for none.
        teacher_layers: that the teacher keeps; None for all.
        bounds: of the gate.
    """

    about: str
    layers: tuple[int, ...]
    train: int = 240
    test: int = 60
    prompt: int = 8
    answer: int = 16
    kept: int = 64
    recovery: Recovery | None = None
    teacher_layers: tuple[int, ...] | None = None
    bounds: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "teacher_perplexity": (5.0, 200.0),
            "kept_mass": (0.7, 1.0),
            "student_kl": (1.0, 50.0),
        }
    )


REGIMES = {
    "plain": Regime("three of 30 layers learn from the whole on 240 sentences", layers=(0, 14, 29)),
    "context": Regime(
        "long sentences: 40 tokens are context, 10 are what follows; two layers as a small reader",
        layers=(0, 1),
        train=200,
        test=40,
        prompt=40,
        answer=10,
    ),
    "own_text": Regime(
        "fifteen layers that have recovered from the cut write on from eight tokens of a sentence",
        layers=(*range(6), *range(21, 30)),
        train=64,
        test=20,
        kept=1024,
        recovery=Recovery(80),
        bounds={
            "teacher_perplexity": (5.0, 200.0),
            "kept_mass": (0.9, 1.0),
            "student_kl": (0.3, 2.0),
            "cut_kl": (2.5, 50.0),
            "own_nll": (2.0, 8.0),
        },
    ),
}


def smoke(plan: Regime) -> Regime:
    """The same regime in seconds: one layer, which is lost; where it writes, its teacher has but two."""
    small = replace(plan, layers=(0,), train=8, test=4, answer=4)
    if plan.recovery is None:
        return replace(small, bounds={**plan.bounds, "teacher_perplexity": (5.0, 1e5)})
    recovery = Recovery(steps=2, batch_size=2, tokens=6)
    return replace(small, recovery=recovery, teacher_layers=(0, 29), bounds={"kept_mass": (0.0, 1.0)})
