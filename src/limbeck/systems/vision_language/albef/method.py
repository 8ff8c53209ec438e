"""ALBEF: align pictures and texts before fusing them, with targets softened by a momentum model (NeurIPS 2021).

Pairs from the web are noisy: a caption misses half of the picture, and another caption of the batch may fit as well.
The labels call the first a whole truth and the second wrong. A slow average theta_m of the network's own weights says
what it thinks of both, and its answers are mixed into the labels: momentum distillation (MoD).

    v, t       unit vectors of picture and text;  v_m, t_m those of theta_m
    keys       T = [t_m ; queue of earlier t_m],  V = [v_m ; queue of earlier v_m]
    p(v)       alpha softmax(v_m T / tau) + (1 - alpha) truth                                soft target, no gradient
    L_ita      1/2 mean [ -sum p(v) log softmax(v T / tau) - sum p(t) log softmax(t V / tau) ]
    L_itm      cross-entropy of "fits" or not: B pairs and 2 B hard negatives, drawn by softmax of the similarities
    L_mlm      (1 - alpha) CE(word) + alpha CE(words of theta_m), mean over the masked words
    L          L_ita + L_itm + L_mlm,     theta_m <- m theta_m + (1 - m) theta at the start of every step

alpha rises from 0 in a line over the first epoch, since the queue and theta_m begin with nothing to say. The
temperature tau is learned, kept in [0.001, 0.5] and used by both; through the soft target it gets no gradient.
Official code: salesforce/ALBEF.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.data.words import IGNORED
from limbeck.engine import OptimizerSettings, Players, Turn
from limbeck.errors import UserError
from limbeck.models.vision_language import VisionLanguage
from limbeck.nn.gather import gather_rows, row_counts
from limbeck.nn.negatives import draw_negatives
from limbeck.nn.queue import FeatureQueue
from limbeck.signals import Batch
from limbeck.sources import EMA


class Pairs(NamedTuple):
    """One network's view of a batch of pairs: tokens ``[B, N, W]`` and ``[B, L, W]``, unit vectors ``[B, D]``."""

    image_tokens: Tensor
    text_tokens: Tensor
    image: Tensor
    text: Tensor


class ALBEF(Players):
    """Pre-training of a :class:`~limbeck.models.vision_language.VisionLanguage`, for :func:`limbeck.engine.fit`.

    A batch holds ``input`` (``pixel_values``, ``input_ids``, ``attention_mask``), ``id``, and, where the network has a
    language head, ``corrupted_ids`` and ``word_labels`` of :class:`~limbeck.data.words.MaskWords`. ``target``, where
    there is one, numbers captions: pairs with the same one are positives of each other and never negatives.

    Args:
        model: two encoders with projections; fusion (matching) and language head are used if it has them.
        momentum: m. queue: places of each queue. width: of the common space.
        contrastive_alpha, language_alpha: final share of the momentum model in each target; 0 is no MoD there.
        ramp: steps over which the shares rise from 0 (the first epoch's); 0 for no rise.
        align: whether there is L_ita. hard: negatives by similarity, or any other of the batch.
        released_truth: one positive per row, as the released pre-training has it, duplicates or not.
    """

    def __init__(
        self,
        model: VisionLanguage,
        *,
        width: int,
        ramp: int,
        momentum: float = 0.995,
        queue: int = 65536,
        contrastive_alpha: float = 0.4,
        language_alpha: float = 0.4,
        align: bool = True,
        hard: bool = True,
        released_truth: bool = False,
        optimizer: OptimizerSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__({"student": optimizer or OptimizerSettings(lr=1e-4, weight_decay=0.02, warmup=0.02)})
        for name, alpha in {"contrastive_alpha": contrastive_alpha, "language_alpha": language_alpha}.items():
            if not 0 <= alpha <= 1:
                raise UserError(name, alpha, "0 to 1")
        if not align and model.fusion is None:
            raise UserError("align", align, "True for a network without a fusion encoder: nothing else is learned")
        self.model, self.ramp = model, ramp
        self.contrastive_alpha, self.language_alpha = contrastive_alpha, language_alpha
        self.align, self.hard, self.released_truth = align, hard, released_truth
        # Weights alone are averaged; the average of the matching head and of tau exists and is not asked.
        self.teacher = EMA(model, momentum, buffers="keep")
        self.sources = {"teacher": self.teacher}
        self.queue = FeatureQueue(queue, seed=seed, image=width, text=width)

    @property
    def momentum_model(self) -> VisionLanguage:
        """theta_m."""
        return self.teacher.model  # type: ignore[return-value]

    def weights_of(self, player: str) -> Sequence[tuple[str, nn.Parameter]]:
        """The network's own."""
        return list(self.model.named_parameters())

    def turns(self, batch: Batch) -> Iterator[Turn]:
        """One step of pre-training."""
        given, ids = batch["input"], batch.get("target", batch["id"])
        self.model.clamp_temperature()
        student = self.encode(self.model, given)
        self.teacher.after_step(self.model, self.steps_done)
        with torch.no_grad():
            teacher = self.encode(self.momentum_model, given)
        terms = self.contrast(student, teacher, ids) if self.align else {}
        if self.model.fusion is not None:
            terms |= self.matching(student, teacher, given["attention_mask"], ids)
        if self.model.words is not None:
            terms |= self.language(student, teacher, batch)
        yield Turn("student", terms, {"temperature": self.model.temperature})
        image, text, ids = gather_rows((teacher.image, teacher.text, ids), row_counts(len(ids), ids.device))
        self.queue.push(ids, image=image, text=text)

    @staticmethod
    def encode(model: VisionLanguage, given: Mapping[str, Tensor]) -> Pairs:
        """Tokens and unit vectors of both sides."""
        image = model.image_tokens(given["pixel_values"])
        text = model.text_tokens(given["input_ids"], given["attention_mask"])
        return Pairs(image, text, model.embed_image(image), model.embed_text(text))

    def contrast(self, student: Pairs, teacher: Pairs, ids: Tensor) -> dict[str, Tensor]:
        """L_ita: the keys are theta_m's, for the positives too."""
        tau = self.model.temperature
        options: dict[str, Any] = {
            "alpha": self.ramped(self.contrastive_alpha),
            "temperature": tau,
            "teacher_temperature": tau.detach(),
            **({} if self.released_truth else {"ids": ids, "queue_ids": self.queue.id}),
        }
        sides = {"image": (student.image, teacher.text, "text"), "text": (student.text, teacher.image, "image")}
        both = [
            losses.soft_info_nce(
                queries, keys, self.softener(getattr(teacher, side)), keys, queue=self.queue[other], **options
            )
            for side, (queries, keys, other) in sides.items()
        ]
        return {"contrast": 0.5 * (both[0] + both[1])}

    def matching(self, student: Pairs, teacher: Pairs, mask: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """L_itm: every pair, every text with a wrong picture, every picture with a wrong text."""
        # As released: the student's vectors against the momentum keys of this batch, both ways.
        tau = self.model.temperature
        image_of = draw_negatives(student.text @ teacher.image.mT / tau, ids, uniform=not self.hard)
        text_of = draw_negatives(student.image @ teacher.text.mT / tau, ids, uniform=not self.hard)
        images, texts = student.image_tokens, student.text_tokens
        fused = self.model.fuse(
            torch.cat([texts, texts, texts[text_of.column]]),
            torch.cat([mask, mask, mask[text_of.column]]),
            torch.cat([images, images[image_of.column], images]),
        )
        fits = torch.arange(len(fused), device=fused.device) < len(texts)
        counts = torch.cat([torch.ones_like(image_of.found), image_of.found, text_of.found])
        return {"matching": losses.cross_entropy(self.model.match(fused), fits.long(), mask=counts)}

    def language(self, student: Pairs, teacher: Pairs, batch: Batch) -> dict[str, Tensor]:
        """L_mlm: only masked words count; the teacher reads the same holes and its own view of the picture."""
        mask, labels = batch["input"]["attention_mask"], batch["word_labels"]
        asked = labels != IGNORED
        logits = self.words(self.model, batch["corrupted_ids"], mask, student.image_tokens, asked)
        alpha = self.ramped(self.language_alpha)
        hard = losses.cross_entropy(logits, labels[asked])
        if not alpha:
            return {"language": hard}
        with torch.no_grad():
            soft = self.words(self.momentum_model, batch["corrupted_ids"], mask, teacher.image_tokens, asked)
        return {"language": (1 - alpha) * hard + alpha * losses.soft_cross_entropy(logits, self.softener(soft))}

    @staticmethod
    def words(model: VisionLanguage, ids: Tensor, mask: Tensor, image_tokens: Tensor, asked: Tensor) -> Tensor:
        """Logits ``[n, vocabulary]`` at the masked words alone."""
        return model.predict_words(model.fuse(model.text_tokens(ids, mask), mask, image_tokens)[asked])

    def softener(self, answers: Tensor) -> Tensor:
        """What the momentum model says in the soft targets: its vectors ``[B, D]``, its logits ``[n, vocabulary]``."""
        return answers

    def ramped(self, alpha: float) -> float:
        """The share in force at this step."""
        return alpha * (min(1.0, self.steps_done / self.ramp) if self.ramp else 1.0)
