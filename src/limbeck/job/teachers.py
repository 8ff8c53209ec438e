"""Where a job's teacher signals come from: the one place that turns the option ``--signals`` into a source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.job.served import Address
from limbeck.language import Writer, writes
from limbeck.models.network import Network
from limbeck.nn.output_head import OutputHead
from limbeck.objectives import Objective
from limbeck.signals import Batch, Forward, HeadLogits
from limbeck.sources import Average, HeadApplied, Live, Routed, Source

if TYPE_CHECKING:
    from limbeck.job.language import Language
    from limbeck.job.plan import Plan

#: What of a language model is kept: 92 bytes per token of SmolLM2, see benchmarks/results/cache_frontier.json.
LANGUAGE_CODEC, _MOST = "above:0.0008:{}", 128
#: Column of a batch that names each sample's teacher.
ROUTE = "teacher"
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(?=[a-z0-9]+:)")

#: Kinds of ``--signals`` and what they mean.
SIGNALS = {
    "live": "the teacher answers in every step",
    "cache": "its answers are kept on disk; of causal-lm the largest log-probabilities (--codec above:0.0008:128)",
    "hidden": "its last hidden states are kept on disk and its head runs in training (causal-lm)",
    "server:URL": "an OpenAI-compatible server answers, server:URL,model=NAME,top=20 (causal-lm)",
}
_LANGUAGE = ("hidden", "server")


@dataclass(frozen=True)
class SignalChoice:
    """One kind of teacher signals with its options; its text is what the user would write."""

    kind: str
    server: Address | None = None
    codec: str = "float16"

    @property
    def cached(self) -> bool:
        """Whether they are written before training."""
        return self.kind in ("cache", "hidden")

    def __str__(self) -> str:
        return {"cache": "cached"}.get(self.kind, self.kind + (f":{self.server.url}" if self.server else ""))


def parse_signals(text: str, task: str, most: int = _MOST) -> SignalChoice:
    """Read ``live``, ``cache``, ``hidden`` or ``server:URL,model=NAME``.

    Args:
        most: log-probabilities that the teacher tells of a token.

    Raises:
        UserError: something else, or a kind that only language models have.
    """
    kind, _, rest = text.partition(":")
    if kind not in {name.partition(":")[0] for name in SIGNALS}:
        raise UserError("signals", text, "; ".join(f"{name}: {what}" for name, what in SIGNALS.items()))
    if kind in _LANGUAGE and task != "causal-lm":
        raise UserError("signals", text, "live or cache", f"{kind} is for language models (--task causal-lm)")
    if kind != "server":
        if rest:
            raise UserError("signals", text, kind, "it takes no options; --codec says how a cache keeps signals")
        codec = LANGUAGE_CODEC.format(min(_MOST, most))
        return SignalChoice(kind, codec=codec if kind == "cache" and task == "causal-lm" else "float16")
    return SignalChoice("server", Address.parse(text, "signals"))


def language_signals(
    asked: SignalChoice | None, folder: str | None, objective: Objective, writer: Writer, address: Address | None
) -> tuple[SignalChoice, str]:
    """The signals of a language model's job, and why; ``address`` is that of a teacher behind a server."""
    if not objective.needs.teacher:
        if asked is not None and asked.kind != "live":
            raise UserError("signals", str(asked), "live", "the objective needs no teacher")
        return SignalChoice("live"), "the objective needs no teacher"
    if asked is None and folder not in (None, "off"):
        asked = parse_signals("cache", "causal-lm", _MOST if address is None else address.top)
    if asked is not None and asked.cached and writes(writer):
        hint = "the student writes new texts (--text), which no cache holds"
        raise UserError("signals", str(asked), "live, server:URL, or --text data", hint)
    if asked is not None:
        return asked, "as given"
    live = "exact" if address is None else "the server answers in every step"
    return SignalChoice("live"), f"{live}; --signals cache asks once and keeps the largest log-probabilities"


def teacher_references(given: Any) -> dict[str, Any]:
    """The teachers that a user gave, by name: one, a list of them, or a list of ``NAME=REFERENCE``.

    A list is also read from its JSON, which is what repeated options and YAML files make.
    """
    if isinstance(given, str) and given.startswith("["):
        try:
            given = json.loads(given)
        except ValueError:
            raise UserError("teacher", given, "a reference, or several") from None
    if not isinstance(given, (list, tuple)):
        return {"": given}
    named: dict[str, Any] = {}
    for number, one in enumerate(given):
        found = _NAMED.match(one) if isinstance(one, str) else None
        name = found[1] if found else str(number)
        if name in named:
            raise UserError("teacher", name, "a name for every teacher", "write NAME=REFERENCE")
        named[name] = one[len(found[0]) :] if found else one
    if not named:
        raise UserError("teacher", "none", "at least one teacher")
    return named


def check_teachers(
    teachers: Mapping[str, Network], weights: Sequence[float], signals: SignalChoice, language: Language | None
) -> list[str]:
    """Refuse several teachers that cannot work together; how they do, in words."""
    routes = language.routes if language is not None else set()
    if len(teachers) == 1 and not routes:
        if weights:
            raise UserError("teacher_weights", list(weights), "nothing, with one teacher")
        return []
    if language is None:
        raise UserError("teacher", f"{len(teachers)} teachers", "one, for this task", "several are for causal-lm")
    if signals.kind in ("hidden", "server"):
        raise UserError("signals", str(signals), "live or cache, with several teachers")
    names = ", ".join(teachers)
    if not routes:
        if weights and len(weights) != len(teachers):
            raise UserError("teacher_weights", list(weights), f"{len(teachers)} numbers, for {names}")
        return [f"the mean of the probabilities of teachers {names}; the table shows the first"]
    unknown = sorted(routes - set(teachers))
    if unknown:
        allowed = f"teachers by name: {names or 'none is given'}"
        raise UserError("columns.teacher", ", ".join(unknown[:5]), allowed, "write --teacher NAME=REFERENCE for each")
    if weights:
        raise UserError("teacher_weights", list(weights), "nothing: a column names the teacher")
    return [f"every text goes to the teacher that its column names, of {names}; the table shows the first"]


@contextmanager
def teaching(plan: Plan) -> Iterator[Source]:
    """What answers in training or fills the cache: live networks, in bfloat16 where the plan says so, or a server."""
    address = plan.signals.server or plan.address
    if address is not None:
        size = plan.language.vocabulary if plan.language is not None else None
        rows = getattr(getattr(plan.student.module, "config", None), "vocab_size", None)
        yield address.source(plan.teacher.tokenizer, size or rows)
        return
    sources = {name: _live(plan, network) for name, network in plan.teachers.items()}
    try:
        if len(sources) == 1 and not (plan.language is not None and plan.language.routes):
            yield next(iter(sources.values()))
        elif plan.language is not None and plan.language.routes:
            yield Routed(sources, ROUTE)
        else:
            weights = plan.settings.teacher_weights or None
            yield Average(list(sources.values()), weights, space="probabilities")
    finally:
        for source in sources.values():
            source.taps.close()


def teacher_forward(forward: Forward) -> Forward:
    """Run the teacher on its own preparation of the batch, where there is one."""

    def run(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return forward(module, {**batch, "input": batch["teacher_input"]} if "teacher_input" in batch else batch)

    run.__qualname__ = forward.__qualname__
    return run


def _live(plan: Plan, network: Network) -> Live:
    forward, name = network.forward, network.forward_name
    if plan.language is not None:
        forward = plan.language.teacher_forward(plan.signals)
        # Logits multiplied out or not are the same teacher.
        alignment = plan.language.alignment
        rows = plan.language.vocabulary if alignment is None else alignment.vocabulary
        name = f"sequences[:{rows or ''}]"

    def run(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if not plan.teacher_bfloat16:
            return forward(module, batch)
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
            return {name: _in_full(value) for name, value in forward(module, batch).items()}

    # A teacher re-ordered, or in another precision, is another teacher to whoever asks for its fingerprint.
    run.__qualname__ = f"{name}{'[bfloat16]' if plan.teacher_bfloat16 else ''}"
    # A language model's teacher is given its own reading of a batch by the distiller.
    read = teacher_forward(run) if plan.language is None else run
    return Live(network.module, taps=plan.teacher_taps, forward=read)


def _in_full(value: Any) -> Any:
    """A teacher's answer in float32; the head of logits that are not multiplied out is so already."""
    return value.map(Tensor.float) if isinstance(value, HeadLogits) else value.float()


def with_head(plan: Plan, source: Source) -> Source:
    """Logits of a source, where it gives hidden states: through the teacher's head."""
    language = plan.language
    if plan.signals.kind != "hidden" or language is None:
        return source
    head = OutputHead.of(plan.teacher.module)
    if language.vocabulary is not None:
        head = head.map(lambda tensor: tensor[: language.vocabulary])
    return HeadApplied(source, head, whole=False)
