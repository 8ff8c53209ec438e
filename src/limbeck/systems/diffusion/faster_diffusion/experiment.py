"""The experiments of faster-diffusion: one small diffusion model, many ways to sample from it.

Every arm starts from the same noises and classes as the full sampler, so that images can be compared one by one. No
arm trains anything; a seed is a set of noises. Margins were set before any recorded seed was looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck import diffusion, testbeds
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.pictures import contact_sheet
from limbeck.diffusion.samplers import DDIM, DPMSolverPP, Sampler
from limbeck.diffusion.split import split_flops
from limbeck.diffusion.unet import SmallUNet
from limbeck.experiment import Arm, Claim, Exact, Experiment, Outcome
from limbeck.experiment.pictures import image
from limbeck.measure import compare_latency, generation
from limbeck.testbeds.images import tensor_hash
from limbeck.testbeds.recipe import kept_tensors

from .features import Features
from .identities import every_step_a_key, halves_joined, parallel_against_serial
from .keys import AdaptiveKeys, KeySchedule
from .method import FasterDiffusion

ABSTRACT, CODE, SHEET, OURS = "[abstract]", "[code] lists of utils_sd.py", "sheet", "our extension"
SOLVERS = {"ddim": DDIM, "dpm": DPMSolverPP}
#: Seed of the noises that adaptive keys are chosen on; recorded seeds are others.
CALIBRATION = 1000


@dataclass(frozen=True)
class Way:
    """How an arm samples.

    Attributes:
        keys: see :meth:`KeySchedule.of <.keys.KeySchedule.of>`; an :class:`~.keys.AdaptiveKeys` is fitted first.
        equal_flops: instead, the full sampler with as many steps as that key list has FLOPs.
        solver: ``ddim`` or ``dpm``. injection, reuse: of :class:`~.method.FasterDiffusion`.
        timed: measure time against the full sampler of the same solver, side by side.
        shown: keep a picture.
    """

    keys: Any = "all"
    equal_flops: Any = None
    solver: str = "ddim"
    injection: float = 0.0
    reuse: str = "encoder"
    timed: bool = False
    shown: bool = False


class Sampling(Experiment):
    """Common to both entries: sample, judge, compare with the full sampler's images."""

    testbed = "small_diffusion:plain"
    metric = "fid"
    steps = 50
    seeds = {"smoke": (0, 1), "full": (0, 1, 2)}
    samples: Mapping[str, int] = {"smoke": 20, "full": 400}
    batch = 50

    def prepare(self) -> dict[str, Any]:
        """Teacher, judge and gate; the judge's view of real validation images is the reference."""
        real = self.bed.splits().validation
        count = self.samples[self.size]
        return {
            "gate": self.bed.gate().as_dict(),
            "data": self.bed.data_hashes(),
            "reference": {"real images": self.bed.judge(torch.as_tensor(real.input)[:count], real.labels[:count])},
        }

    @cached_property
    def bed(self) -> Any:
        """The testbed."""
        return testbeds.load(self.testbed, self.size)  # type: ignore[arg-type]

    @cached_property
    def network(self) -> SmallUNet:
        """The trained UNet."""
        made: SmallUNet = self.bed.teacher()
        return made

    def run(self, arm: str, seed: int) -> Outcome:
        """Sample, and judge against real test images and against the full sampler's images from the same noises."""
        way: Way = self.arms[arm].setting
        noise, labels = self.bed.noise(self.samples[self.size], seed)
        fast = self.faster(way)
        parts = zip(noise.split(self.batch), labels.split(self.batch), strict=True)
        images = torch.cat([fast.sample(*part) for part in parts])
        full = self.full_images(way.solver, seed)
        judged, target = self.bed.judge(images, labels), self.bed.judge(full, labels)
        flops = self.cost_per_row
        rows = fast.counts
        spent = (rows.encoder_rows * flops["encode"] + rows.decoder_rows * flops["decode"]) / len(noise)
        everything = 2 * self.steps * (flops["encode"] + flops["decode"])
        band = judged["high_band"] / target["high_band"]
        metrics = {
            **judged,
            "fid_ratio": judged["fid"] / target["fid"],
            "psnr_to_full": generation.psnr(images.clamp(-1, 1), full.clamp(-1, 1)),
            "high_band_to_full": band,
            "high_band_gap": abs(band - 1),
            "encoder_calls": rows.encoder_rows / len(noise) / 2,
            "decoder_calls": rows.decoder_rows / len(noise) / 2,
            "flops": spent,
            "flops_saved": 1 - spent / everything,
        }
        shown = {"samples, a class each": image(contact_sheet(images[:10], 5), enlarge=2)}
        return Outcome(
            metrics,
            # No metric: the same run gives the same metrics, and times differ.
            cost=self.times(way) if way.timed else {},
            notes={"keys": list(fast.keys.keys), "steps": len(fast.sampler)} if seed == 0 else {},
            pictures=shown if way.shown and seed == 0 else {},
        )

    def faster(self, way: Way, *, parallel: bool = True) -> FasterDiffusion:
        """The sampler of an arm."""
        steps, keys = self.steps, way.keys
        if way.equal_flops is not None:
            steps, keys = self.equal_steps(way.equal_flops), "all"
        sampler = self.sampler(way.solver, steps)
        if isinstance(keys, AdaptiveKeys):
            noise, labels = self.bed.noise(20, CALIBRATION)
            keys = keys.fit(self.bed.guided(self.network), sampler, noise, labels).keys_
        return FasterDiffusion(
            self.network,
            sampler,
            keys,
            scale=self.bed.plan.guidance,
            null=self.bed.null,
            parallel=parallel,
            injection=way.injection,
            reuse=way.reuse,
        )

    def sampler(self, solver: str, steps: int) -> Sampler:
        """A sampler with evenly spaced times from the noisiest on."""
        made: Sampler = SOLVERS[solver](Grid.spaced(self.bed.schedule, steps, spacing="trailing"))
        return made

    @cached_property
    def cost_per_row(self) -> dict[str, float]:
        """FLOPs of both halves."""
        noise, labels = self.bed.noise(2, 0)
        return split_flops(self.network, noise, torch.tensor([500, 500]), labels)

    def equal_steps(self, keys: Any) -> int:
        """How many full steps cost as much as the key list does, rounded up in the rival's favour."""
        flops = self.cost_per_row
        schedule = KeySchedule.of(keys, self.steps)
        spent = len(schedule) * flops["encode"] + self.steps * flops["decode"]
        return -int(-spent // (flops["encode"] + flops["decode"]))

    def full_images(self, solver: str, seed: int) -> Tensor:
        """The full sampler's images of a seed, made once for all arms; the file is named after all that makes them."""
        noise, labels = self.bed.noise(self.samples[self.size], seed)
        content = {
            "weights": tensor_hash(*self.network.state_dict().values()),
            "code": _code(),
            "solver": solver,
            "steps": self.steps,
            "guidance": self.bed.plan.guidance,
            "noise": tensor_hash(noise, labels),
        }

        def make() -> dict[str, Tensor]:
            sampler, guided = self.sampler(solver, self.steps), self.bed.guided(self.network)
            parts = zip(noise.split(self.batch), labels.split(self.batch), strict=True)
            return {"images": torch.cat([sampler.sample(guided, *part) for part in parts])}

        return kept_tensors("faster-diffusion-full", content, make)["images"]

    def times(self, way: Way) -> dict[str, float]:
        """Speed-up over the full sampler, measured side by side on a few images."""
        noise, labels = self.bed.noise(8, CALIBRATION)
        full = self.faster(Way(solver=way.solver))
        calls = {
            "full": full,
            "parallel": self.faster(way),
            "serial": self.faster(way, parallel=False),
        }
        rounds = 5 if self.size == "full" else 1
        timed = compare_latency(
            {name: partial(one.sample, noise, labels) for name, one in calls.items()}, rounds=rounds, warmup=1
        )
        return {"speedup": timed["parallel"].speedup, "speedup_serial": timed["serial"].speedup}


def claim(text: str, arm: str, over: str, metric: str, margin: float = 0.0, source: str = SHEET) -> Claim:
    """A comparison whose direction the metric decides."""
    lower = metric in ("fid", "fid_ratio", "high_band_gap")
    return Claim(text, arm, over, metric, margin, "lower" if lower else "higher", source)


IDENTITIES = (
    Exact("Joined, the halves are the network, bit for bit", halves_joined, 0.0, SHEET),
    Exact("With every step a key it is the full sampler, bit for bit", every_step_a_key, 0.0, SHEET),
    Exact("The parallel form computes what the serial form does", parallel_against_serial, 1e-5, CODE),
)


class Fifty(Sampling):
    """DDIM with 50 steps, the setting of the paper's lists."""

    title = "DDIM, 50 steps"
    arms = {
        "full": Arm(Way(shown=True, timed=True), "DDIM, the encoder at all 50 steps", "none"),
        "ddim-equal-flops": Arm(
            Way(equal_flops="50ls", shown=True, timed=True), "DDIM with fewer steps, as many FLOPs as 50ls", "rival"
        ),
        "50ls": Arm(Way("50ls", shown=True, timed=True), "the paper's 9 key steps, dense early"),
        "50ls-inject-0.001": Arm(
            Way("50ls", injection=0.001), "and 0.001 of the first noise per late step", "ablation"
        ),
        "50ls-inject-0.003": Arm(Way("50ls", injection=0.003, shown=True), "and 0.003, as released"),
        "50ls-inject-0.01": Arm(Way("50ls", injection=0.01, shown=True), "and 0.01", "ablation"),
        "uniform-2": Arm(Way(2), "every 2nd step a key: 25", "ablation"),
        "uniform-4": Arm(Way(4), "every 4th step a key: 13", "ablation"),
        "uniform-5": Arm(Way(5), "every 5th step a key: 10", "ablation"),
        "uniform-6": Arm(Way(6, shown=True), "every 6th step a key: 9, as many as 50ls", "control"),
        "uniform-10": Arm(Way(10, shown=True), "every 10th step a key: 5", "ablation"),
        "dense-late": Arm(Way("50ls3", shown=True), "released list 50ls3: 10 keys, dense late", "control"),
        "50ls2": Arm(Way("50ls2"), "released list 50ls2: 10 keys, dense at a fifth", "ablation"),
        "50ls4": Arm(Way("50ls4"), "released list 50ls4: 10 keys, irregular", "ablation"),
        "progressive": Arm(Way("pro"), "gaps that grow by one: 9 keys", "ablation"),
        "s2": Arm(Way("s2"), "released list s2: 39 keys", "ablation"),
        "reuse-output": Arm(
            Way("50ls", reuse="output", shown=True), "the key step's eps repeated: steps skipped", "rival"
        ),
        "adaptive": Arm(
            Way(AdaptiveKeys(9)), "9 keys where the encoder's features have moved most, from other noises", "ablation"
        ),
    }
    claims = (
        claim(
            "Quality is kept: FID at most a tenth above the full sampler's", "50ls", "full", "fid_ratio", -0.1, ABSTRACT
        ),
        claim(
            "The class is kept: conditional accuracy at most a point lower",
            "50ls",
            "full",
            "conditional_accuracy",
            -0.01,
            ABSTRACT,
        ),
        claim("A fifth of the FLOPs or more is saved", "50ls", "full", "flops_saved", 0.2, ABSTRACT),
        claim("Nearer to the full sampler than as many even keys", "50ls", "uniform-6", "psnr_to_full"),
        claim("Better FID than as many even keys", "50ls", "uniform-6", "fid_ratio"),
        claim("Dense-late keys are farther from the full sampler", "50ls", "dense-late", "psnr_to_full", 0.0, CODE),
        claim("Dense-late keys have a worse FID", "50ls", "dense-late", "fid_ratio", 0.0, CODE),
        claim("Repeating eps is much worse: FID a tenth or more", "50ls", "reuse-output", "fid_ratio", 0.1),
        claim("Repeating eps is a decibel or more farther away", "50ls", "reuse-output", "psnr_to_full", 1.0),
        claim("Better FID than DDIM with as many FLOPs", "50ls", "ddim-equal-flops", "fid_ratio"),
        claim("Nearer to the full sampler than DDIM with as many FLOPs", "50ls", "ddim-equal-flops", "psnr_to_full"),
        claim(
            "Injected noise brings back high frequencies", "50ls-inject-0.003", "50ls", "high_band_to_full", 0.0, CODE
        ),
        claim(
            "Injected noise brings their power nearer to the full sampler's",
            "50ls-inject-0.003",
            "50ls",
            "high_band_gap",
            0.0,
            CODE,
        ),
        claim(
            "Injection costs no more than 0.05 of the FID ratio", "50ls-inject-0.003", "50ls", "fid_ratio", -0.05, CODE
        ),
        claim("More keys are nearer to the full sampler", "uniform-2", "uniform-10", "psnr_to_full"),
        claim("Keys chosen by feature change are nearer than the list", "adaptive", "50ls", "psnr_to_full", 0.0, OURS),
        *IDENTITIES,
    )


class Twenty(Sampling):
    """20 steps of DDIM and of DPM-Solver++(2M); the list of 50 is scaled to 7 keys."""

    title = "20 steps, DDIM and DPM-Solver++"
    steps = 20
    arms = {
        "full": Arm(Way(shown=True, timed=True), "DDIM, the encoder at all 20 steps", "none"),
        "ddim-equal-flops": Arm(Way(equal_flops="50ls"), "DDIM with fewer steps, as many FLOPs as 50ls", "rival"),
        "50ls": Arm(Way("50ls", shown=True, timed=True), "the paper's list scaled to 7 key steps of 20"),
        "uniform-3": Arm(Way(3), "every 3rd step a key: 7", "control"),
        "reuse-output": Arm(Way("50ls", reuse="output"), "the key step's eps repeated", "rival"),
        "dpm-full": Arm(Way(solver="dpm", shown=True, timed=True), "DPM-Solver++(2M), all 20 steps", "none"),
        "dpm-equal-flops": Arm(
            Way(solver="dpm", equal_flops="50ls"), "DPM-Solver++ with fewer steps, equal FLOPs", "rival"
        ),
        "dpm-50ls": Arm(Way("50ls", solver="dpm", shown=True, timed=True), "DPM-Solver++ with the scaled list"),
    }
    claims = (
        claim("Quality is kept with DDIM", "50ls", "full", "fid_ratio", -0.1, ABSTRACT),
        claim("Quality is kept with DPM-Solver++", "dpm-50ls", "dpm-full", "fid_ratio", -0.1, ABSTRACT),
        claim("Nearer to the full sampler than as many even keys", "50ls", "uniform-3", "psnr_to_full"),
        claim("Repeating eps is a decibel or more farther away", "50ls", "reuse-output", "psnr_to_full", 1.0),
        claim("Better FID than DDIM with as many FLOPs", "50ls", "ddim-equal-flops", "fid_ratio"),
        claim("Nearer to the full sampler than DDIM with as many FLOPs", "50ls", "ddim-equal-flops", "psnr_to_full"),
        claim("Better FID than DPM-Solver++ with as many FLOPs", "dpm-50ls", "dpm-equal-flops", "fid_ratio"),
        claim("A fifth of the FLOPs or more is saved", "50ls", "full", "flops_saved", 0.2, ABSTRACT),
    )


EXPERIMENTS: dict[str, type[Experiment]] = {"fifty": Fifty, "twenty": Twenty, "features": Features}


@cache
def _code() -> str:
    """Hash of the files that the full sampler's images come from."""
    room = Path(str(diffusion.__file__)).parent
    names = ("denoiser.py", "grid.py", "noise.py", "samplers.py", "split.py", "unet.py")
    return hashlib.sha256(b"".join((room / name).read_bytes() for name in names)).hexdigest()
