"""A step of on-policy distillation, and what it is spent on, against TRL's GKD trainer doing the same.

    python benchmarks/on_policy_step.py [--quick]

TRL comes from PyPI into ``build/trl-venv``, which this script makes and which borrows torch, transformers and
everything else from the venv that runs it. Both sides run there, in turn and in one process, each with its own loop:
``SequenceDistiller`` with ``fit``, and ``GKDTrainer.train``.

Alike on both sides: SmolLM2-135M as the teacher, every second of its layers as the student; prompts from manual pages,
all of the same length; as many new tokens for each, sampled at temperature 1 from the whole vocabulary, with nothing
that ends a text early; KL(teacher || student) on the new tokens; AdamW, gradients clipped, float32, no dropout.
Before anything is measured, TRL's loss is computed on a text that our side wrote, and the two must agree.

Not alike, as each library has it:

- logits: TRL takes both networks' logits and their log-softmax at every position and then leaves out the prompt's;
  ours takes those of the answer alone
- sampling: ``generate`` of transformers there; ours draws token k of a row with the k-th number of the row's seed, so
  that a sample does not depend on its batch, and that costs a sum over the vocabulary in double precision
- teacher: no-grad there, inference mode and a check for NaN here

A step is split by the clock around the generation and around the teacher's pass; the rest is the student's forward and
backward pass, the loss, the optimiser and the loop.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from pairs import check, conclude, measure_pair
from torch import Tensor, nn
from venvs import compare_beside

from limbeck.data.loaders import TensorLoader
from limbeck.engine import OptimizerSettings, fit
from limbeck.language import Decoding, OnPolicy, SequenceDistiller, Sequences, answer_logits
from limbeck.nn.transfer import keep_layers
from limbeck.objectives import KL
from limbeck.sources import Live
from limbeck.testbeds.manpages_corpus import sentences
from limbeck.testbeds.smollm2 import SmolLM2

TRL = "1.16.0"
OTHERS = ("datasets", "accelerate", "dill", "multiprocess", "xxhash")
BATCH, NEW, SKIPPED, STEPS = 4, 32, 1, 2
#: Tokens of a prompt.
LENGTHS = {"short": 32, "long": 256}
LEARNING_RATE, CLIP = 1e-5, 1.0

Spent = dict[str, float]


@cache
def bed() -> SmolLM2:
    """For the model and its tokenizer."""
    return SmolLM2()


@cache
def teacher() -> nn.Module:
    return bed().teacher()


@cache
def half() -> nn.Module:
    """Every second layer."""
    return keep_layers(teacher(), range(0, 30, 2)).train().requires_grad_(True)


@cache
def prompts(length: int) -> list[list[int]]:
    """As many as the steps need, cut out of the pages' sentences one after another."""
    wanted, ids = BATCH * (SKIPPED + STEPS), []
    for sentence in sentences():
        ids += bed().tokenizer(sentence.text + " ").input_ids
        if len(ids) >= wanted * length:
            break
    return [ids[length * row : length * (row + 1)] for row in range(wanted)]


class Clock(Callback):
    """When every step ended, and what was spent inside it by part."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.parts: Spent = defaultdict(float)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.step_ended()

    def step_ended(self) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == SKIPPED:
            self.parts.clear()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time is counted as ``part``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = function(*args, **kwargs)
            self.parts[part] += time.perf_counter() - start
            return found

        return timed

    @property
    def seconds(self) -> float:
        """Of the steps that count."""
        return self.times[-1] - self.times[SKIPPED - 1]

    def split(self) -> Spent:
        """Seconds of one step by part."""
        found = {part: value / STEPS for part, value in self.parts.items()}
        return {**found, "student": self.seconds / STEPS - sum(found.values())}


class Counted(Live):
    """A live teacher under the clock."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        super().__init__(model, forward=answer_logits)
        self.clock = clock

    def __call__(self, batch: Any, needs: Any = ()) -> Any:
        return self.clock.around("teacher", super().__call__)(batch, needs)


def ours(length: int) -> Clock:
    """Steps through SequenceDistiller and fit."""
    clock = Clock()
    decoding = Decoding(length=NEW, end=None, pad=0)
    writer = OnPolicy(clock.around("generate", decoding))  # type: ignore[arg-type]
    distiller = SequenceDistiller(
        copy.deepcopy(half()), KL(), Counted(teacher(), clock), writer=writer,
        optimizer=OptimizerSettings(lr=LEARNING_RATE, schedule="constant", warmup=0),
    )  # fmt: skip
    given = Sequences.pad(prompts(length), [[0]] * len(prompts(length)), pad=0)
    loader = TensorLoader({"input": given.columns()}, BATCH, seed=0)
    fit(distiller, loader, epochs=1, gradient_clip=CLIP, callbacks=[clock], accelerator="cpu")
    return clock


def theirs(length: int) -> Clock:
    """Steps through GKDTrainer.train."""
    from transformers import TrainerCallback

    clock = Clock()

    class StepEnds(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step_ended()

    with tempfile.TemporaryDirectory() as folder:
        trainer = gkd(length, folder, [StepEnds()])
        student = trainer.model
        student.generate = clock.around("generate", student.generate)
        trainer.teacher_model.forward = clock.around("teacher", trainer.teacher_model.forward)
        try:
            trainer.train()
        finally:
            del student.generate, trainer.teacher_model.forward
    return clock


def gkd(length: int, folder: str, callbacks: list[Any]) -> Any:
    """TRL's trainer, fully on the student's own text, with the teacher's KL."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    settings = GKDConfig(
        output_dir=folder, use_cpu=True, bf16=False, fp16=False, per_device_train_batch_size=BATCH, num_train_epochs=1,
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=CLIP,
        gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=10**6, disable_tqdm=True,
        lmbda=1.0, beta=0.0, temperature=1.0, max_new_tokens=NEW, max_length=None,
    )  # fmt: skip
    # The collator wants an answer, which is not read: the student writes its own.
    rows = [{"input_ids": [*ids, 0], "completion_mask": [0] * len(ids) + [1], "prompt": ""} for ids in prompts(length)]
    tokenizer = bed().tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = GKDTrainer(
        model=copy.deepcopy(half()), teacher_model=teacher(), args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip
    # Nothing ends a text early, on either side.
    trainer.generation_config.eos_token_id = None
    trainer.generation_kwargs["eos_token_id"] = None
    trainer.model.generation_config.eos_token_id = None
    return trainer


def difference_of_losses() -> float:
    """Relative difference of the two losses on one text that our side wrote."""
    length = LENGTHS["short"]
    given = Sequences.pad(prompts(length)[:BATCH], [[0]] * BATCH, pad=0)
    views = torch.arange(BATCH)
    empty = given.with_answers(given.answer[:, :0], given.answer_mask[:, :0])
    text = Decoding(length=NEW, end=None, pad=0)(half(), empty, views)
    batch = {**text.batch(), "id": views}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        one, other = answer_logits(half(), batch), answer_logits(teacher(), batch)
        mine = sum(KL()(one, other, batch).values())
        ids, mask = text.joined()
        labels = torch.cat([torch.full_like(text.prompt, -100), text.answer], 1)
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
        yours: Tensor = gkd(length, folder, []).compute_loss(half(), inputs)
    return float((mine - yours).abs() / yours.abs())


def compare(quick: bool) -> None:
    """Measure, inside the venv that has TRL."""
    torch.set_num_threads(2)
    difference = difference_of_losses()
    print(f"the two losses of one text differ by {difference:.1e}", flush=True)
    if not difference < 1e-4:
        sys.exit("the two sides do not do the same distillation")
    result: dict[str, Any] = {
        "trl": TRL,
        "batch": BATCH,
        "new_tokens": NEW,
        "difference_of_losses": difference,
        "comparability": [" ".join(paragraph.split()) for paragraph in (__doc__ or "").split("\n\n")[3:]],
    }
    checks = []
    for name, length in LENGTHS.items():
        spent: dict[str, Spent] = {}

        def side(run: Callable[[int], Clock], length: int = length, spent: dict[str, Spent] = spent) -> float:
            clock = run(length)
            spent[run.__name__] = clock.split()
            return clock.seconds

        repeats = 1 if quick else 3
        pair = measure_pair(lambda: side(ours), lambda: side(theirs), repeats, warmup=0 if quick else 1)
        result[name] = {"prompt_tokens": length, "time": pair.to_dict(), "seconds_of_a_step": spent}
        print(f"prompts of {length} tokens: ours / TRL {pair}; {spent}", flush=True)
        checks.append(check(f"{length} tokens in, {NEW} out: our step over TRL's, time", pair.ratio, at_most=1.0))
    conclude("on_policy_step", result, checks, quick=quick)


if __name__ == "__main__":
    compare_beside(compare, __doc__, __file__, "trl", TRL, OTHERS)
