"""The experiment behind the method: how far the blocks' features move from step to step; see :mod:`.analysis`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from torch import nn

from limbeck import testbeds
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.samplers import DDIM
from limbeck.experiment import Arm, Claim, Experiment, Outcome

from .analysis import FeatureChange, feature_change
from .identities import randomised


@dataclass(frozen=True)
class Blocks:
    """Blocks whose change an arm averages, of the trained network or of a fresh one."""

    names: tuple[str, ...]
    trained: bool = True


ENCODER, DECODER = ("down.0", "down.1", "down.2", "middle"), ("up.2", "up.1", "up.0")


class Features(Experiment):
    """Every arm reads other blocks along the full sampler's path, from the same noises."""

    title = "Feature change from step to step"
    testbed = "small_diffusion:plain"
    metric = "log2_change"
    steps = 50
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    samples: Mapping[str, int] = {"smoke": 4, "full": 40}
    arms = {
        "encoder": Arm(Blocks(ENCODER), "mean of the encoder's blocks: down.0 to down.2, middle"),
        "decoder": Arm(Blocks(DECODER), "mean of the decoder's blocks: up.2 to up.0", "rival"),
        "first convolution": Arm(Blocks(("conv_in",)), "linear in the noised sample", "none"),
        **{name: Arm(Blocks((name,)), "this block alone", "ablation") for name in (*ENCODER, *DECODER)},
        "fresh encoder": Arm(Blocks(ENCODER, trained=False), "the encoder with random weights", "control"),
        "fresh decoder": Arm(Blocks(DECODER, trained=False), "the decoder with random weights", "control"),
    }
    arms = {name.replace(" ", "-"): arm for name, arm in arms.items()}
    claims = (
        Claim(
            "The encoder's features move less than half as much as the decoder's",
            "decoder",
            "encoder",
            "log2_change",
            margin=1.0,
            source="sheet",
        ),
        Claim(
            "The last decoder block moves more than twice as much as the encoder",
            "up.0",
            "encoder",
            "log2_change",
            margin=1.0,
            source="[recalled]",
        ),
        Claim(
            "The encoder's features settle more than the decoder's after the first half",
            "encoder",
            "decoder",
            "log2_settling",
            source="[abstract]",
        ),
        Claim(
            "Training makes the difference: with random weights decoder and encoder are nearer",
            "decoder",
            "fresh-decoder",
            "log2_to_encoder",
            source="our control",
        ),
    )

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    def prepare(self) -> dict[str, Any]:
        """The gate of the testbed."""
        return {"gate": self.bed.gate().as_dict(), "data": self.bed.data_hashes(), "reference": {}}

    def run(self, arm: str, seed: int) -> Outcome:
        """Measure along the full sampler's path."""
        blocks: Blocks = self.arms[arm].setting
        found = self.measured(seed, blocks.trained)
        series = [sum(values) / len(values) for values in zip(*(found.change[n] for n in blocks.names), strict=True)]
        norms = [sum(values) / len(values) for values in zip(*(found.norm[n] for n in blocks.names), strict=True)]
        half = len(series) // 2
        first, second = sum(series[:half]) / half, sum(series[half:]) / (len(series) - half)
        change = found.mean(*blocks.names)
        return Outcome(
            {
                "change": change,
                "log2_change": math.log2(change),
                "log2_to_encoder": math.log2(change / found.mean(*ENCODER)),
                "log2_settling": math.log2(first / second),
            },
            curves={"relative change since the last step": series, "norm of the features": norms} if seed == 0 else {},
        )

    @cache  # noqa: B019  (an experiment lives as long as its worker)
    def measured(self, seed: int, trained: bool) -> FeatureChange:
        """The analysis of one set of noises, for all arms."""
        network: nn.Module = self.bed.teacher() if trained else randomised(self.bed.student(seed), seed)
        noise, labels = self.bed.noise(self.samples[self.size], seed)
        sampler = DDIM(Grid.spaced(self.bed.schedule, self.steps, spacing="trailing"))
        return feature_change(network, self.bed.guided(network), sampler, noise, labels)
