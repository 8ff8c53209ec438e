"""Testbeds of prompts with answers: small language models over one tokenizer, made from a corpus of pairs.

Teacher and student are small Llama models of transformers, or encoder-decoders; the student that experiments begin with
has been fine-tuned on the data already, as in all work on distilling language models. A subclass brings the pairs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split, Splits
from limbeck.data.store import cache_folder, content_hash, locked, written_aside
from limbeck.data.views import view_seeds
from limbeck.errors import UserError, require
from limbeck.language import Decoding, Sequences, answer_logits, without_answers
from limbeck.losses import cross_entropy
from limbeck.measure.text import rouge_l
from limbeck.models.llama import LlamaSizes, llama
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.recipe import kept_numbers, kept_tensors, kept_weights, seeded, warm_cosine

PAD, END, START, SEPARATOR, UNKNOWN = range(5)
SPECIAL = ("<pad>", "<end>", "<start>", "<sep>", "<unk>")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class SplitSizes:
    """Of an encoder-decoder, or of the decoder-only model with as many layers and weights (``joined``)."""

    width: int
    encoder: int
    decoder: int
    heads: int
    kv_heads: int
    dropout: float = 0.0
    joined: bool = False


@dataclass(frozen=True)
class Training:
    """Fine-tuning on the pairs: AdamW, a cosine after a short warm-up.

    Attributes:
        prompt_weight: of the prompt's own tokens in the loss; a small model learns to copy sooner with them.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    prompt_weight: float = 0.0
    seed: int = 0
    version: int = 1


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        teacher, student: sizes. teacher_recipe, student_recipe: their fine-tuning.
        vocabulary: tokens of the byte-pair encoding.
        prompt, answer: longest prompt and answer in tokens; longer code is cut, longer docstrings are left out.
        train, validation, test: pairs, of different source files, before those with long answers are left out.
        pool: training pairs that experiments distil on.
        begins: regime of the same texts whose teacher this one's goes on from, so that it need not learn to read anew.
        bounds: of the gate.
    """

    about: str
    teacher: LlamaSizes
    student: LlamaSizes | SplitSizes
    teacher_recipe: Training
    student_recipe: Training
    bounds: Mapping[str, tuple[float, float]]
    vocabulary: int = 2048
    prompt: int = 24
    answer: int = 16
    train: int | None = None
    validation: int = 400
    test: int = 400
    pool: int = 4000
    begins: str | None = None


class TextPairs(Testbed):
    """See the module. ``input`` holds ``prompt``, ``prompt_mask``, ``answer``, ``answer_mask``; no targets."""

    special = tuple(range(len(SPECIAL)))
    regimes: ClassVar[Mapping[str, Regime]]

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        chosen = self.regimes[regime]
        self.plan: Regime = chosen if size == "full" else self.smoke(chosen)

    @staticmethod
    def smoke(regime: Regime) -> Regime:
        """The same regime in seconds: networks that hardly learn."""
        split = isinstance(regime.student, SplitSizes)
        return replace(
            regime, teacher=LlamaSizes(32, 2, 2), student=SplitSizes(16, 2, 1, 2, 1) if split else LlamaSizes(16, 1, 2),
            prompt=min(regime.prompt, 32), answer=min(regime.answer, 16), teacher_recipe=Training(40, 16),
            student_recipe=Training(20, 16), vocabulary=512, train=400, validation=40, test=40, pool=100,
            bounds={"teacher_rouge_l": (0.0, 1.0)},
        )  # fmt: skip

    @property
    def num_classes(self) -> int:
        """Tokens."""
        return self.plan.vocabulary

    @property
    @abstractmethod
    def pairs(self) -> Mapping[str, Pairs]:
        """Prompt and answer as text, of ``train``, ``validation`` and ``test``; of the plan's sizes."""

    @cached_property
    def _texts(self) -> dict[str, Any]:
        parts = dict(self.pairs)
        return {"parts": parts, "sha256": content_hash({"pairs": parts})}

    @cached_property
    def tokenizer(self) -> Any:
        """A byte-pair encoding of the training texts, of :mod:`tokenizers`; made once and kept."""
        tokenizers = require("tokenizers", "language")
        path = cache_folder("tokenizers") / f"{self.name}-{content_hash(self._origin)[:16]}.json"
        with locked(path.stem):
            if not path.is_file():
                made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIAL[UNKNOWN]))
                made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
                made.decoder = tokenizers.decoders.ByteLevel()
                trainer = tokenizers.trainers.BpeTrainer(
                    vocab_size=self.plan.vocabulary, special_tokens=list(SPECIAL), show_progress=False
                )
                train = self._texts["parts"]["train"]
                made.train_from_iterator([text for pair in train for text in (pair[0], pair[1], pair[1])], trainer)
                with written_aside(path) as aside:
                    made.save(str(aside))
        return tokenizers.Tokenizer.from_file(str(path))

    def splits(self, seed: int = 0) -> Splits:
        """The same for every seed; no source file is in two splits. See :meth:`pool`."""
        return Splits(*(self._split(name) for name in ("train", "validation", "test")))

    def pool(self) -> Split:
        """The training pairs that experiments distil on."""
        return self.splits().train.subset(torch.arange(self.plan.pool))

    def references(self, split: Split) -> list[str]:
        """The docstrings of a split, as text."""
        return self.text(Sequences.of(split.input))  # type: ignore[arg-type]

    def text(self, written: Sequences) -> list[str]:
        """Answers as text."""
        rows = [ids[mask].tolist() for ids, mask in zip(written.answer, written.answer_mask)]
        return [text.strip() for text in self.tokenizer.decode_batch(rows, skip_special_tokens=True)]

    def pieces(self) -> list[str]:
        """Every token as text, with its leading space, for span extractors."""
        return [self.tokenizer.decode([number]) for number in range(self.plan.vocabulary)]

    def network(self, sizes: LlamaSizes | SplitSizes, seed: int) -> nn.Module:
        """An untrained Llama model, encoder-decoder or twin of one."""
        if isinstance(sizes, SplitSizes):
            return seeded(lambda: self._split_network(sizes), seed)
        length = max(64, self.plan.prompt + self.plan.answer)
        return seeded(lambda: llama(sizes, self.plan.vocabulary, length, pad=PAD, start=START, end=END), seed)

    def teacher(self) -> nn.Module:
        """See :class:`Testbed`."""
        return self._trained("teacher", self.plan.teacher, self.plan.teacher_recipe)

    def student(self, seed: int = 0) -> nn.Module:
        """The fine-tuned student that every arm begins with, trainable; the same for every seed."""
        made = self._trained("student", self.plan.student, self.plan.student_recipe)
        return made.requires_grad_(True)

    def student_of(self, sizes: LlamaSizes | SplitSizes) -> nn.Module:
        """A student of other sizes, fine-tuned as :meth:`student` is, trainable."""
        if sizes == self.plan.student:
            return self.student()
        recipe = self.plan.student_recipe
        content = {**self._origin, "sizes": asdict(sizes), "recipe": asdict(recipe)}
        return self._kept("student", content, sizes, recipe).requires_grad_(True)

    def write(self, model: nn.Module, split: Split, seed: int | None = None, batch_size: int = 300) -> Sequences:
        """What a model answers to the prompts of a split: greedy, or sampled with a seed."""
        whole = Sequences.of(split.input)  # type: ignore[arg-type]
        asked, decoding = without_answers(whole), self.decoding()
        answers, masks = [], []
        for rows in torch.arange(len(split)).split(batch_size):
            views = None if seed is None else view_seeds(seed, 0, split.id[rows])
            found = decoding(model, asked.select(rows), views)
            gap = self.plan.answer - found.answer.shape[1]
            answers.append(nn.functional.pad(found.answer, (0, gap), value=PAD))
            masks.append(nn.functional.pad(found.answer_mask, (0, gap)))
        return asked.with_answers(torch.cat(answers), torch.cat(masks))

    def decoding(self, **options: Any) -> Decoding:
        """How answers are written: this testbed's length and special tokens."""
        return Decoding(self.plan.answer, END, PAD, **options)

    def teacher_answers(self, seed: int | None = None) -> Sequences:
        """The pool's prompts with the teacher's own answers, greedy or sampled; made once and kept."""

        def make() -> dict[str, Tensor]:
            return self.write(self.teacher(), self.pool(), seed).columns()

        content = {**self._content("teacher"), "seed": seed, "pool": self.plan.pool}
        return Sequences.of(kept_tensors(f"{self.name}-answers", content, make))

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``nll`` per token of the true answers; of greedy answers ``rouge_l``, ``copied`` (share of their words that
        the prompt holds) and ``ended`` (share that come to an end in time)."""
        greedy = self.write(model, split)
        return {"nll": self.nll(model, split), **self.judge(greedy, self.references(split))}

    @staticmethod
    def nll(model: nn.Module, split: Split) -> float:
        """Per token of the true answers."""
        nll = tokens = 0.0
        with torch.inference_mode():
            for batch in split.batches(300):
                given = Sequences.of(batch["input"]).trimmed().batch()
                logits = answer_logits(model, given)["logits"]
                nll += float(cross_entropy(logits, given["target"], mask=given["mask"], reduction="sum"))
                tokens += float(given["mask"].sum())
        return nll / tokens

    def judge(self, written: Sequences, references: list[str]) -> dict[str, float]:
        """``rouge_l``, ``copied`` and ``ended`` of written answers."""
        texts = self.text(written)
        rows = [ids[mask].tolist() for ids, mask in zip(written.prompt, written.prompt_mask)]
        prompts = [set(text.split()) for text in self.tokenizer.decode_batch(rows, skip_special_tokens=True)]
        words = [(word in prompt) for text, prompt in zip(texts, prompts) for word in text.split()]
        last = written.answer.gather(1, (written.lengths - 1).clamp_min(0)[:, None])
        return {
            "rouge_l": sum(rouge_l(texts, references)) / len(texts),
            "copied": sum(words) / max(len(words), 1),
            "ended": float((last == END).double().mean()),
        }

    def gate(self) -> Gate:
        """What the regime asks of teacher and student, on the validation split."""
        content = {"teacher": self._content("teacher"), "student": self._content("student")}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        validation = self.splits().validation
        teacher, student = self.evaluate(self.teacher(), validation), self.evaluate(self.student(), validation)
        found = {f"teacher_{key}": value for key, value in teacher.items()}
        found |= {f"student_{key}": value for key, value in student.items()}
        found["rouge_l_lead"] = teacher["rouge_l"] - student["rouge_l"]
        return {**found, "nll_lead": student["nll"] - teacher["nll"]}

    def _trained(self, role: str, sizes: LlamaSizes | SplitSizes, recipe: Training) -> nn.Module:
        return self._kept(role, self._content(role), sizes, recipe)

    def _kept(self, role: str, content: dict[str, Any], sizes: LlamaSizes | SplitSizes, recipe: Training) -> nn.Module:
        return kept_weights(
            f"{self.name}-{role}",
            content,
            build=lambda: self._begun(role, sizes, recipe.seed),
            make=lambda model: finetune(model, self.splits().train, recipe),
        )

    def _content(self, role: str) -> dict[str, Any]:
        plan = self.plan
        sizes, recipe = getattr(plan, role), getattr(plan, f"{role}_recipe")
        content = {**self._origin, "sizes": asdict(sizes), "recipe": asdict(recipe)}
        before = self._before(role)
        return content if before is None else {**content, "begins": before._content(role)}

    def _begun(self, role: str, sizes: LlamaSizes | SplitSizes, seed: int) -> nn.Module:
        made, before = self.network(sizes, seed), self._before(role)
        if before is not None:
            if before.tokenizer.to_str() != self.tokenizer.to_str():
                raise UserError("begins", self.plan.begins, "a regime of the same vocabulary")
            made.load_state_dict(before.teacher().state_dict())
        return made

    def _before(self, role: str) -> TextPairs | None:
        begins = self.plan.begins
        return type(self)(begins, self.size) if begins and role == "teacher" else None

    def _split_network(self, sizes: SplitSizes) -> nn.Module:
        require("transformers", "language")
        from limbeck.models.encoder_decoder import BlockSizes, encoder_decoder, twin

        blocks = BlockSizes(sizes.width, sizes.heads, sizes.kv_heads, dropout=sizes.dropout)
        make = twin if sizes.joined else encoder_decoder
        return make(
            blocks, sizes.encoder, sizes.decoder, vocabulary=self.plan.vocabulary, pad=PAD, start=START, end=END
        )

    @property
    def _origin(self) -> dict[str, Any]:
        plan = self.plan
        shape = [plan.vocabulary, plan.prompt, plan.answer, plan.train, plan.validation, plan.test]
        return {"texts": self._texts["sha256"], "shape": shape}

    @cached_property
    def _tokens(self) -> dict[str, Tensor]:
        return kept_tensors(f"{self.name}-{self.size}", self._origin, self._tokenized)

    def _tokenized(self) -> dict[str, Tensor]:
        plan, start = self.plan, 0
        found: dict[str, Tensor] = {}
        for part, pairs in self._texts["parts"].items():
            code = [one.ids for one in self.tokenizer.encode_batch([pair[0] for pair in pairs])]
            docs = [one.ids for one in self.tokenizer.encode_batch([pair[1] for pair in pairs])]
            kept = [(a, b) for a, b in zip(code, docs) if len(b) < plan.answer]
            prompts = [[START, *a[: plan.prompt - 2], SEPARATOR] for a, _ in kept]
            made = Sequences.pad(prompts, [[*b, END] for _, b in kept], pad=PAD).columns()
            found |= {f"{part}.{key}": value for key, value in made.items()}
            found[f"{part}.id"] = torch.arange(start, start + len(kept))
            start += len(kept)
        return found

    def _split(self, part: str) -> Split:
        mine = {key.split(".")[1]: value for key, value in self._tokens.items() if key.startswith(f"{part}.")}
        ids = mine.pop("id")
        return Split(mine, None, ids)


def finetune(model: nn.Module, samples: Split, recipe: Training) -> nn.Module:
    """Train a model in place on prompts with their answers; it comes back in eval mode."""
    loader = TensorLoader(samples, recipe.batch_size, seed=recipe.seed, drop_last=True)
    optimiser = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)
    )
    model.train()
    step = 0
    while step < recipe.steps:
        for batch in loader:
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * warm_cosine(step / recipe.steps)
            loss = _loss(model, Sequences.of(batch["input"]).trimmed(), recipe.prompt_weight)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            if step == recipe.steps:
                break
    return model.eval()


def _loss(model: nn.Module, given: Sequences, prompt_weight: float) -> Tensor:
    if not prompt_weight:
        batch = given.batch()
        return cross_entropy(answer_logits(model, batch)["logits"], batch["target"], mask=batch["mask"])
    # The whole text as the answer to its first token. Shorter prompts are padded between, which nothing attends to.
    ids, mask = given.joined()
    first = given.prompt_mask.int().argmax(1, keepdim=True)
    start = torch.arange(ids.shape[1]) == first
    logits = answer_logits(model, {**given.batch(), "target": ids[:, 1:]})["logits"]
    weight = torch.cat([torch.full_like(given.prompt, 1), given.answer], 1).ne(-1).float()
    weight[:, : given.prompt.shape[1]] = prompt_weight
    counted = (mask & ~start)[:, 1:]
    total = (weight[:, 1:] * counted).sum()
    return cross_entropy(logits, ids[:, 1:], mask=counted, weight=weight[:, 1:], denominator=total)
