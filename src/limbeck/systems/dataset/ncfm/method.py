"""NCFM: distil a data set by matching neural characteristic functions (Wang et al., CVPR 2025).

A few images per class are learned so that their features are *distributed* as those of the real class. Two
distributions are equal exactly if their characteristic functions are, so with x the unit feature vectors

    a(t) = E_synthetic exp(i t.x)            b(t) = E_real exp(i t.x)
    amplitude(t) = (|a| - |b|)^2             diversity
    phase(t)     = 2 |a||b| (1 - cos(arg a - arg b))          realism;  amplitude + phase = |a - b|^2
    NCFD(t)      = mean_t sqrt(alpha amplitude + beta phase)

    min over images  max over psi   E_network  sum_c  NCFD_c(t_psi)        + calibration

The frequencies t come from N(0, I), anew for every step (the released default), or from a small network psi that is
trained to make the discrepancy large. Linear in the number of images; no second-order gradients, no unrolled training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.condensation.experts import Networks
from limbeck.condensation.images import SyntheticImages
from limbeck.condensation.matching import DistributionMatching, distil, feature_width
from limbeck.condensation.store import DistilledSet
from limbeck.data.split import Split
from limbeck.errors import UserError
from limbeck.losses import characteristic_discrepancy, unit_vectors


class SampleNet(nn.Module):
    """Frequencies ``[count, features]`` from noise: three linear layers with BatchNorm; LeakyReLU, LeakyReLU, tanh.

    The tanh bounds the frequencies, without which a maximiser would make them, and with them the phases, arbitrarily
    large. (The released network makes a sixteenth of them and repeats each: the same mean, at sixteen times the cost.)
    """

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        if count < 2:
            raise UserError("frequencies", count, "2 or more: BatchNorm has no variance over one")
        self.features, self.count = features, count
        layers: list[nn.Module] = []
        for activation in (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2), nn.Tanh()):
            layers += [nn.Linear(features, features), nn.BatchNorm1d(features), activation]
        self.layers = nn.Sequential(*layers)

    def forward(self) -> Tensor:
        noise = torch.randn(self.count, self.features, device=next(self.parameters()).device)
        frequencies: Tensor = self.layers(noise)
        return frequencies


class CharacteristicDistance(nn.Module):
    """NCFD of unit features ``[C, N, D]`` and ``[C, M, D]``, one number per class.

    Args:
        count: frequencies per step, shared by the classes.
        alpha, beta: weights of amplitude and phase.
        spread: deviation of the frequencies; the features' norm is 1, so that t.x ~ N(0, spread^2).
        net: makes the frequencies in place of N(0, I); its parameters are the second player.
    """

    def __init__(
        self, count: int, *, alpha: float = 0.5, beta: float = 0.5, spread: float = 1.0, net: SampleNet | None = None
    ) -> None:
        super().__init__()
        self.count, self.alpha, self.beta, self.spread, self.net = count, alpha, beta, spread, net

    def frequencies(self, like: Tensor) -> Tensor:
        """``[count, D]``, new ones for every call."""
        drawn: Tensor = torch.randn(self.count, like.shape[-1], device=like.device) if self.net is None else self.net()
        return self.spread * drawn

    def forward(self, synthetic: Tensor, real: Tensor) -> Tensor:
        return characteristic_discrepancy(
            unit_vectors(synthetic),
            unit_vectors(real),
            self.frequencies(synthetic),
            amplitude_weight=self.alpha,
            phase_weight=self.beta,
            reduction="none",
        )


class NCFM:
    """Distil images ``[N, C, H, W]`` in [0, 1] with classes: ``NCFM(pool, per_class=10).fit_transform(train)``.

    Args:
        networks: an ``ExpertPool``: at every step an expert is drawn, and a mixture of its beginning and its end.
        per_class, factor: stored images of every class, and tiles per side of each (2: four half-size pictures).
        start: ``mix``, ``real`` or ``noise``; or images to go on with.
        steps, real_batch: iterations, and real images of every class in each.
        frequencies: how many. adversary: learn them with a :class:`SampleNet`; ``"fixed"`` keeps it untrained.
        alpha, beta, spread: see :class:`CharacteristicDistance`.
        calibration: weight of the cross-entropy under the trained end of the expert.
        options: of ``DistributionMatching`` (``augment``, ``tap``, ``optimizer``, ``patience``, ``classes_at_once``).

    After ``fit``: ``images_``, ``distance_`` and ``history_``.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        per_class: int = 10,
        factor: int = 2,
        start: str | SyntheticImages = "mix",
        steps: int = 20_000,
        real_batch: int = 1024,
        frequencies: int = 4096,
        adversary: bool | str = False,
        alpha: float = 0.5,
        beta: float = 0.5,
        spread: float = 1.0,
        scale: float = 300.0,
        calibration: float = 1.0,
        patience: int | None = 500,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if adversary not in (True, False, "fixed"):
            raise UserError("adversary", adversary, (True, False, "fixed"))
        self.networks, self.per_class, self.factor, self.start = networks, per_class, factor, start
        self.steps, self.real_batch, self.frequencies, self.adversary = steps, real_batch, frequencies, adversary
        self.alpha, self.beta, self.spread, self.seed = alpha, beta, spread, seed
        self.options = {"scale": scale, "calibration": calibration, "patience": patience, **options}

    def fit(self, real: Split, **running: Any) -> NCFM:
        """Learn the images; ``running`` goes to ``engine.fit`` (``out`` and ``resume`` for long runs)."""
        if isinstance(self.start, SyntheticImages):
            self.images_ = self.start
        else:
            self.images_ = SyntheticImages.start(self.start, real, self.per_class, factor=self.factor, seed=self.seed)
        net = self._sample_net()
        self.distance_ = CharacteristicDistance(
            self.frequencies, alpha=self.alpha, beta=self.beta, spread=self.spread, net=net
        )
        matching = DistributionMatching(self.images_, self.networks, self.distance_, **self.options)
        batch = self.real_batch
        _, self.history_ = distil(matching, real, steps=self.steps, real_batch=batch, seed=self.seed, **running)
        return self

    def transform(self) -> DistilledSet:
        """The set as it is kept."""
        return self.images_.distilled({"made by": "ncfm", "steps": str(self.steps), "seed": str(self.seed)})

    def fit_transform(self, real: Split) -> DistilledSet:
        """Both."""
        return self.fit(real).transform()

    def _sample_net(self) -> SampleNet | None:
        if not self.adversary:
            return None
        width = feature_width(self.networks, self.images_(), self.options.get("tap", "head:input"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = SampleNet(width, self.frequencies)
        return net.requires_grad_(self.adversary != "fixed")
