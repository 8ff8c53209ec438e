"""The main experiment: sixteen demonstrations as eight vectors, on languages that training has not seen.

Every trained arm of a seed sees the same texts and episodes in the same order; seeds change the order, the queries and
the projector. The last step counts. Margins were fixed before a recorded seed was run; sizes and rates were set on
seed 100, on validation episodes of seen languages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import testbeds
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.data.views import uniform, view_seeds
from limbeck.engine import run_program
from limbeck.experiment import Experiment, Outcome
from limbeck.experiment.pictures import scatter
from limbeck.language import (
    BehindPrefix,
    InContext,
    Prefix,
    SharedPrompt,
    full_context_logits,
    grouped,
    in_context_batch,
    pad_rows,
    prefixed_logits,
)
from limbeck.losses import forward_kl
from limbeck.measure import count_flops, latency
from limbeck.objectives import CrossEntropy, Objective
from limbeck.testbeds.word_languages import answer_rows
from limbeck.testbeds.word_reading import FIRST_NAME, NEWLINE

from .arms import ARMS, BOTH, CE, CLAIMS, HELD, KL, LENGTH_CLAIMS, LENGTHS, Way
from .method import compressor, finetuning, mend, pretraining


class WordLanguages(Experiment):
    """See the module."""

    name = "word_languages"
    title = "Demonstrations as eight vectors"
    testbed = "word_languages:plain"
    metric = HELD
    arms = ARMS
    claims = CLAIMS
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    steps = {"smoke": (4, 4), "full": (40, 600)}
    batch_size = {"smoke": 4, "full": 16}
    rates = (1e-3, 1e-3)

    def prepare(self) -> dict[str, Any]:
        """The language model, the small reader, the teacher's answers and the gate."""
        self.bed.reader()
        for part in (self.bed.texts(), self.bed.splits().train):
            self.bed.signals(part)
            self.bed.signals(part, swapped=True)
        for part in (self.bed.splits().test, self.bed.seen_test()):
            self.bed.signals(part)
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {"model": self.bed.evaluate(self.bed.teacher(), self.bed.splits().test)},
        }

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def run(self, arm: str, seed: int) -> Outcome:
        """Train where there is something to train, then judge on tasks with held-out languages."""
        way: Way = self.arms[arm].setting
        model, begun = self.bed.teacher(), time.perf_counter()
        student, curves = (None, {}) if way.kind == "tokens" else self.train(way, model, seed)
        seconds = time.perf_counter() - begun
        test, seen = self.bed.splits().test, self.bed.seen_test()
        metrics, said, wanted = self.judge(way, model, student, test, seed)
        metrics |= {f"{name}_seen": value for name, value in self.judge(way, model, student, seen, seed)[0].items()}
        spent, latency_ms = self.cost(way, model, student, test, seed)
        pictures = {}
        if seed == 0 and arm in ("mend", "ce-only", "prompt") and student is not None:
            points = (wanted[:300].exp().tolist(), said[:300].exp().tolist())
            pictures["Probability of the right letter"] = scatter(
                {arm: points}, x_label="with 16 demonstrations", y_label="behind 8 vectors",
                lines={"the same": ([0.0, 1.0], [0.0, 1.0])},
            )  # fmt: skip
        costs = {"training_seconds": seconds, "latency_ms": latency_ms}
        return Outcome({**metrics, **spent}, curves, costs, pictures=pictures)

    def train(self, way: Way, model: nn.Module, seed: int) -> tuple[nn.Module, dict[str, list[float]]]:
        """A compressor, or a shared prompt, through the stages of its arm."""
        texts, episodes = self.bed.texts(), self.bed.splits().train
        size, together = self.batch_size[self.size], self.bed.plan.queries
        loaders = [
            TensorLoader(part, count, seed=seed, drop_last=True, transform=in_context_batch)
            for part, count in ((texts, size), (grouped(episodes, together), size // together))
        ]
        steps, left_out = self.steps[self.size], way.first is None
        phases = mend(
            model, None if left_out else loaders[0], loaders[1],
            steps=(steps[0], sum(steps) if left_out else steps[1]), rates=self.rates,
            teachers=(self.bed.signals(texts, way.swapped), self.bed.signals(episodes, way.swapped)),
            first=self.objective(way.first or KL), second=self.objective(way.second),
        )  # fmt: skip
        if way.kind == "prompt":
            table = model.get_input_embeddings().weight  # type: ignore[operator]
            student: nn.Module = SharedPrompt(table, way.length, start=self.bed.tokens, seed=seed)
        else:
            reader = self.bed.reader() if way.own else self.bed.student()
            student = compressor(model, reader, way.length, limit=None, start=self.bed.tokens, seed=seed)
        history = run_program(student, phases, seed=seed, accelerator="cpu", log_every=10, gradient_clip=1.0)
        curves = {
            f"{phase}_{name}": found.curve(name)["y"]
            for phase, found in history.items()
            for name in found.names()
            if name != "loss"
        }
        return student.eval(), curves

    @staticmethod
    def objective(name: str) -> Objective:
        """``kl``, ``ce`` or ``both``."""
        makers: dict[str, Callable[[], Objective]] = {KL: pretraining, CE: CrossEntropy, BOTH: finetuning}
        return makers[name]()

    @torch.inference_mode()
    def judge(
        self, way: Way, model: nn.Module, student: nn.Module | None, test: Split, seed: int
    ) -> tuple[dict[str, float], Tensor, Tensor]:
        """Metrics, and log-probabilities of the right letter as the arm and as the teacher say it.

        ``accuracy`` among the task's letters, ``agreement`` with the teacher's choice among them, ``kl`` from its
        distribution over all bytes.
        """
        source, rows = self.bed.signals(test), []
        names, candidates = test.labels + FIRST_NAME, test.input["candidates"]  # type: ignore[index,call-overload]
        for batch in test.batches(64):
            given = InContext.of(batch["input"])
            teacher = answer_rows(source(batch, ("logits",))["logits"], given)  # type: ignore[arg-type]
            read = shortened(given, way, batch["input"]["candidates"], view_seeds(seed, 0, batch["id"]))
            said = self.ask(model, student, read)
            rows.append(torch.stack([answer_rows(said, read), teacher]).log_softmax(-1))
        ours, theirs = torch.cat(rows, 1)
        chosen = [
            torch.where(candidates >= 0, part.gather(1, candidates.clamp_min(0)), -torch.inf).argmax(1)
            for part in (ours, theirs)
        ]
        right = candidates.gather(1, chosen[0][:, None]).squeeze(1) == names
        metrics = {
            "accuracy": float(right.double().mean()),
            "agreement": float((chosen[0] == chosen[1]).double().mean()),
            "kl": float(forward_kl(ours, theirs)),
        }
        return metrics, *(part.gather(1, names[:, None]).squeeze(1) for part in (ours, theirs))

    @staticmethod
    def ask(model: nn.Module, student: nn.Module | None, given: InContext) -> Tensor:
        """Logits at the texts' tokens, behind the contexts' tokens or what the student makes of them."""
        batch = given.batch()
        found = full_context_logits(model, batch) if student is None else BehindPrefix(model)(student, batch)
        return found["logits"]

    def cost(
        self, way: Way, model: nn.Module, student: nn.Module | None, test: Split, seed: int
    ) -> tuple[dict[str, float], float]:
        """``position_share`` and ``flops_share`` of a query, the prefix being there already, and ``norm``; milliseconds
        of one query."""
        batch = next(test.batches(8))
        whole = InContext.of(batch["input"]).trimmed()
        read = shortened(whole, way, batch["input"]["candidates"], view_seeds(seed, 0, batch["id"])).trimmed()
        prefix: Prefix | None = None if student is None else student(read.context, read.context_mask)

        def ask(rows: slice = slice(None)) -> None:
            given = read.select(torch.arange(len(read))[rows])
            if prefix is None:
                full_context_logits(model, given.batch())
            else:
                prefixed_logits(model, Prefix(prefix.vectors[rows], prefix.mask[rows]), given.text, given.text_mask)

        before = float(read.context_mask.sum() if prefix is None else prefix.mask.sum())
        texts, everything = float(read.text_mask.sum()), count_flops(lambda: full_context_logits(model, whole.batch()))
        shares = {
            "position_share": (before + texts) / (float(whole.context_mask.sum()) + texts),
            "flops_share": count_flops(ask) / everything,
        }
        if prefix is not None:
            usual = model.get_input_embeddings().weight.norm(dim=-1).mean()  # type: ignore[operator]
            shares["norm"] = float(prefix.vectors.norm(dim=-1).mean() / usual)
        with torch.inference_mode():
            return shares, latency(lambda: ask(slice(1)), rounds=20, warmup=3).p50_ms


def shortened(given: InContext, way: Way, candidates: Tensor, views: Tensor) -> InContext:
    """Texts behind ``way.shots`` of their demonstrations, drawn by the views; whole for arms that are given all."""
    if way.kind != "tokens" or way.shots >= 16:
        return given
    contexts = []
    for ids, mask, names, view in zip(given.context, given.context_mask, candidates.tolist(), views):
        lines = demonstrations(ids[mask].tolist())
        order = uniform(view, torch.arange(len(lines))).argsort().tolist()
        if way.balanced:
            # The first one of every language, in random order.
            order = [next(place for place in order if lines[place][-2] == name) for name in names if name in
                     {line[-2] for line in lines}]  # fmt: skip
        contexts.append([token for place in order[: way.shots] for token in lines[place]])
    context, mask = pad_rows(contexts, 0, left=True)
    return InContext(context, mask, given.text, given.text_mask, given.answer)


def demonstrations(tokens: list[int]) -> list[list[int]]:
    """Lines, each with its end."""
    ends = [place + 1 for place, token in enumerate(tokens) if token == NEWLINE]
    return [tokens[start:end] for start, end in zip([0, *ends], ends)]


class Lengths(WordLanguages):
    """How many vectors."""

    name = "lengths"
    title = "Demonstrations as 2 to 16 vectors"
    arms = LENGTHS
    claims = LENGTH_CLAIMS
