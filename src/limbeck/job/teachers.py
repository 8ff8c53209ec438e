"""Where a job's teacher signals come from: the one place that turns the option ``--signals`` into a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.errors import UserError
from limbeck.language import Writer, writes
from limbeck.nn.output_head import OutputHead
from limbeck.objectives import Objective
from limbeck.sources import HeadApplied, Source

if TYPE_CHECKING:
    from limbeck.job.plan import Plan

#: Kinds of ``--signals`` and what they mean.
SIGNALS = {
    "live": "the teacher answers in every step",
    "cache": "its answers are kept on disk; of causal-lm the largest log-probabilities (--codec topk:64)",
    "hidden": "its last hidden states are kept on disk and its head runs in training (causal-lm)",
    "server:URL": "an OpenAI-compatible server answers, server:URL,model=NAME,k=20 (causal-lm)",
}
_LANGUAGE = ("hidden", "server")


@dataclass(frozen=True)
class SignalChoice:
    """One kind of teacher signals with its options; its text is what the user would write."""

    kind: str
    target: str = ""
    options: dict[str, str] = field(default_factory=dict)
    codec: str = "float16"

    @property
    def cached(self) -> bool:
        """Whether they are written before training."""
        return self.kind in ("cache", "hidden")

    def __str__(self) -> str:
        return {"cache": "cached"}.get(self.kind, self.kind + (f":{self.target}" if self.target else ""))


def parse_signals(text: str, task: str) -> SignalChoice:
    """Read ``live``, ``cache``, ``hidden`` or ``server:URL,model=NAME``.

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
        return SignalChoice(kind, codec="topk:64" if kind == "cache" and task == "causal-lm" else "float16")
    target, *options = rest.split(",")
    if not target.startswith(("http://", "https://")) or not all("=" in option for option in options):
        raise UserError("signals", text, "server:http://HOST:PORT/v1,model=NAME,k=20")
    return SignalChoice("server", target, dict(option.split("=", 1) for option in options))


def language_signals(
    asked: SignalChoice | None, folder: str | None, objective: Objective, writer: Writer
) -> tuple[SignalChoice, str]:
    """The signals of a language model's job, and why."""
    if not objective.needs.teacher:
        if asked is not None and asked.kind != "live":
            raise UserError("signals", str(asked), "live", "the objective needs no teacher")
        return SignalChoice("live"), "the objective needs no teacher"
    if asked is None and folder not in (None, "off"):
        asked = parse_signals("cache", "causal-lm")
    if asked is not None and asked.cached and writes(writer):
        hint = "the student writes new texts (--text), which no cache holds"
        raise UserError("signals", str(asked), "live, server:URL, or --text data", hint)
    if asked is not None:
        return asked, "as given"
    return SignalChoice("live"), "exact; --signals cache asks once and keeps the largest log-probabilities"


def with_head(plan: Plan, source: Source) -> Source:
    """Logits of a cache, where it holds hidden states: through the teacher's head."""
    language = plan.language
    if plan.signals.kind != "hidden" or language is None:
        return source
    head = OutputHead.of(plan.teacher.module)
    if language.vocabulary is not None:
        head = head.map(lambda tensor: tensor[: language.vocabulary])
    return HeadApplied(source, head, whole=False)
