"""Trans-Encoder: one pre-trained transformer in two forms that label sentence pairs for each other (ICLR 2022).

A bi-encoder b compares two vectors; a cross-encoder c reads both sentences at once, and needs labels. From a bi-encoder
b_0 that was trained without labels, for cycle t = 1 ... T, over unlabelled pairs (u, v):

    labels      y  = cos(b_{t-1}(u), b_{t-1}(v))
    c_t         minimises  BCE(sigmoid(z(u, v)), y)          on (u, v) and (v, u), one epoch
    labels      y' = sigmoid(z_t(u, v))                      one order
    b_t         minimises  (cos(b(u), b(v)) - y')^2

Mutual-distillation: two encoders, which may differ in everything; y and y' are means over the two.

Where c_t and b_t start (``initialise``):

    fresh        c_t from the plain language model, b_t from b_0      (the released scripts; the paper's for mutual)
    start        both from b_0
    sequential   c_t from b_{t-1}'s body, b_t from c_t's              (the paper's for self-distillation)

A head is always drawn anew. The alternation itself is :class:`limbeck.engine.Alternation`, the two forms are
:mod:`limbeck.models.pairs`, the label store is :class:`limbeck.sources.PseudoLabels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache.fingerprint import fingerprint_text, fingerprint_tokenizer
from limbeck.data.loaders import TensorLoader
from limbeck.data.text_pairs import Pair, clean_pairs
from limbeck.engine.alternation import Alternation, Form, HalfCycle, mean_of
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.errors import UserError
from limbeck.measure.pairs import pair_quality
from limbeck.models.pairs import CrossEncoder, PairCollate, pair_cosine, pair_scores, with_body
from limbeck.models.sentence import SentenceEncoder
from limbeck.objectives import Objective, ScoreBCE, ScoreMSE
from limbeck.signals import run_network
from limbeck.sources import PseudoLabels, Source

POLICIES = ("fresh", "start", "sequential")
FORMS = ("cross", "bi")


@dataclass(frozen=True)
class Recipe:
    """How one form is trained. The defaults of :class:`TransEncoder` are the released ones, for BERT-size networks.

    Attributes:
        select_every: where the best step on dev pairs is kept: evaluate every so many steps, and after each epoch.
    """

    epochs: int
    batch_size: int
    lr: float
    warmup: float = 0.0
    objective: Callable[[], Objective] = ScoreMSE
    select_every: int = 200

    def optimizer(self) -> OptimizerSettings:
        return OptimizerSettings("adamw", self.lr, weight_decay=0.01, schedule="linear", warmup=self.warmup)


CROSS = Recipe(epochs=1, batch_size=32, lr=2e-5, warmup=0.1, objective=ScoreBCE)
BI = Recipe(epochs=10, batch_size=128, lr=5e-5, objective=ScoreMSE)


@dataclass(frozen=True)
class Step:
    """One network of the run, and what the dev pairs say of it (NaN without any)."""

    cycle: int
    form: str
    member: int
    network: nn.Module
    dev: float


class TransEncoder:
    """Self-distillation of one sentence encoder, or mutual distillation of several: ``fit(pairs)``, then ``predict``.

    Args:
        encoders: the starting bi-encoders b_0, with their tokenizers; one, or several for mutual distillation.
        plain: for each the language model it was made from (any network with the same body), where ``fresh``
            cross-encoders begin; without it they begin at b_0.
        cycles: T.
        initialise: ``fresh``, ``start`` or ``sequential``.
        forms: ``("cross", "bi")``; ``("bi",)`` leaves the cross-encoder out: plain retraining on own labels.
        cross, bi: recipes.
        both_orders: train the cross-encoder on (u, v) and (v, u). False where order matters (question, answer).
        max_length: longest sentence in tokens; a pair may have twice as many.
        select: keep the best evaluated step of a turn on the dev pairs of :meth:`fit`; the last otherwise.
        combine: what becomes of the members' labels; the mean by default.
        out, resume: a folder for checkpoints and labels, and whether to go on with what it holds.
        seed: of heads, order and dropout.
        options: anything else that :func:`~limbeck.engine.fit` takes.

    After ``fit``: ``steps_`` (every network of every cycle), ``counts_`` (pairs left out), ``labels_`` (the store).
    """

    def __init__(
        self,
        encoders: SentenceEncoder | Sequence[SentenceEncoder],
        *,
        plain: Sequence[nn.Module] | nn.Module | None = None,
        cycles: int = 3,
        initialise: str = "fresh",
        forms: Sequence[str] = FORMS,
        cross: Recipe = CROSS,
        bi: Recipe = BI,
        both_orders: bool = True,
        max_length: int = 32,
        select: bool = False,
        combine: Callable[[Sequence[Source]], Source] = mean_of,
        out: Path | str | None = None,
        resume: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if initialise not in POLICIES:
            raise UserError("initialise", initialise, POLICIES)
        if tuple(forms) not in (FORMS, ("bi",)):
            raise UserError("forms", tuple(forms), '("cross", "bi") or ("bi",)')
        self.encoders = [encoders] if isinstance(encoders, SentenceEncoder) else list(encoders)
        given = self.encoders if plain is None else [plain] if isinstance(plain, nn.Module) else list(plain)
        if len(given) != len(self.encoders):
            raise UserError("plain", f"{len(given)} networks", f"one per encoder, {len(self.encoders)}")
        self.plain, self.cycles, self.initialise, self.forms = given, cycles, initialise, tuple(forms)
        self.recipes: Mapping[str, Recipe] = {"cross": cross, "bi": bi}
        self.both_orders, self.max_length, self.select, self.combine = both_orders, max_length, select, combine
        self.out, self.resume, self.seed, self.options = Path(out) if out else None, resume, seed, options

    def fit(self, pairs: Sequence[Pair], dev: tuple[Sequence[Pair], Tensor] | None = None) -> TransEncoder:
        """Train on unlabelled pairs; ``dev`` is (pairs, similarities) and only chooses.

        Raises:
            UserError: no pair is left, or ``select`` without ``dev``.
        """
        if self.select and dev is None:
            raise UserError("dev", None, "labelled pairs, from which select chooses")
        cleaned = clean_pairs(pairs, self.max_length)
        if not cleaned.pairs:
            raise UserError("pairs", "none that is left", "at least one pair of two sentences", str(cleaned.counts()))
        self.counts_ = cleaned.counts()
        self.labels_ = self._store(cleaned.pairs)
        alternation = Alternation(
            [
                [self._form(name, cleaned.pairs, member, dev) for name in self.forms]
                for member in range(len(self.encoders))
            ],
            self.encoders,
            labels=self.labels_,
            combine=self.combine,
            out=self.out,
            resume=self.resume,
            seed=self.seed,
            **self.options,
        )
        self.steps_ = [Step(0, "bi", member, one, self._dev(one, dev)) for member, one in enumerate(self.encoders)]
        for turn, network in alternation.run(self.cycles):
            self.steps_.append(Step(turn.cycle, turn.form, turn.member, network, self._dev(network, dev)))
        return self

    def choose(self, form: str = "bi", by: str = "last") -> list[nn.Module]:
        """One network per member, not b_0: of the ``last`` cycle (no label has a part in it) or the best on ``dev``."""
        if by not in ("last", "dev"):
            raise UserError("by", by, ("last", "dev"))
        if form not in self.forms:
            raise UserError("form", form, self.forms)
        found = []
        for member in range(len(self.encoders)):
            steps = [step for step in self.steps_ if (step.form, step.member) == (form, member) and step.cycle]
            found.append((max(steps, key=lambda step: step.dev) if by == "dev" else steps[-1]).network)
        return found

    def predict(self, pairs: Sequence[Pair], form: str = "cross", by: str = "last") -> Tensor:
        """Scores ``[len(pairs)]``, the mean over the members."""
        return torch.stack([pair_scores(network, pairs) for network in self.choose(form, by)]).mean(0)

    # The two forms.

    def _form(self, name: str, pairs: list[Pair], member: int, dev: Any) -> Form:
        recipe, joined = self.recipes[name], name == "cross"
        collate = PairCollate(self.encoders[member].tokenizer, joined, self.max_length * (2 if joined else 1))
        ids = torch.arange(len(pairs))
        training, numbers = pairs, ids
        if joined and self.both_orders:
            # Both orders have one label, so they share an id.
            training, numbers = pairs + [(second, first) for first, second in pairs], ids.repeat(2)
        lengths = [len(first) + len(second) for first, second in training]
        options: dict[str, Any] = {}
        if self.select:
            options = {"validate": lambda model: {"dev": self._dev(model.student, dev)}, "select": "dev"}
            options["validate_every"] = recipe.select_every
        return Form(
            name,
            self._initial,
            recipe.objective,
            lambda seed: TensorLoader(
                {"input": training, "id": numbers}, recipe.batch_size, seed=seed, collate=collate, lengths=lengths
            ),
            lambda: TensorLoader(
                {"input": pairs, "id": ids}, 64, shuffle=False, collate=collate, lengths=lengths[: len(pairs)]
            ),
            epochs=recipe.epochs,
            optimizer=recipe.optimizer(),
            forward=run_network if joined else pair_cosine,
            options=options,
        )

    def _initial(self, turn: HalfCycle) -> nn.Module:
        encoder = self.encoders[turn.member]
        if turn.form == "bi":
            return with_body(encoder, turn.previous if self.initialise == "sequential" else encoder)
        body = {"fresh": self.plain[turn.member], "start": encoder, "sequential": turn.previous}[self.initialise]
        return CrossEncoder.on(body, encoder.tokenizer, max_length=2 * self.max_length)

    def _dev(self, network: nn.Module, dev: tuple[Sequence[Pair], Tensor] | None) -> float:
        return float("nan") if dev is None else pair_quality(pair_scores(network, dev[0]), dev[1])["spearman"]

    def _store(self, pairs: list[Pair]) -> PseudoLabels:
        tokenizers = [fingerprint_tokenizer(encoder.tokenizer) for encoder in self.encoders]
        data = fingerprint_text("pairs", pairs, tokenizers, self.max_length)
        return PseudoLabels(self.out / "labels" if self.out else None, data=data)
