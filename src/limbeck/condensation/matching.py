"""Distribution matching: learn images whose features are distributed as those of the real images of their class.

The loop that DM, CAFE, IDM, NCFM and their kin share. What differs is where the networks come from
(:mod:`limbeck.condensation.experts`), what is called a distance of two distributions, and whether a second player tries
to make that distance large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from limbeck.condensation.experts import Networks
from limbeck.condensation.images import SyntheticImages
from limbeck.condensation.sampling import ClassLoader
from limbeck.condensation.store import DistilledSet
from limbeck.data.siamese import SiameseAugment
from limbeck.data.split import Split
from limbeck.engine import History, OptimizerSettings, fit
from limbeck.engine.checkpoints import ExactResume
from limbeck.engine.min_max import min_max_step
from limbeck.engine.optimizer import training_steps
from limbeck.errors import LimbeckError, UserError
from limbeck.losses import cross_entropy
from limbeck.signals import move, run_network
from limbeck.taps import Taps

#: ``distance(synthetic [C, N, D], real [C, M, D])``: one number per class ``[C]``.
Distance = Callable[[Tensor, Tensor], Tensor]
IMAGE_OPTIMIZER = OptimizerSettings(lr=0.01, weight_decay=5e-4, schedule="constant")
SIAMESE = SiameseAugment(("color", "crop", "cutout"))


class DistributionMatching(LightningModule):
    """Images, learned so that ``distance(features of synthetic, features of real)`` is small in every class.

    One step: draw a network; shift, tint and cut real and synthetic images of a class by one and the same draw; take
    the distance of their features, summed over the classes; step the images, and the second player the other way. With
    ``calibration``, then step the images on the cross-entropy that the trained end of the same network gives them.

    Args:
        images: what is learned.
        networks: where features come from.
        distance: one value per class. A module's parameters are a second player: they maximise.
        scale: factor of the distance. With Adam it decides how much the distance weighs beside the calibration.
        calibration: weight of the cross-entropy; 0 leaves it out.
        augment: the siamese augmentation, ``None`` for none.
        tap: where the features are read (see ``Taps``); flattened per image.
        optimizer: of the images; its schedule runs over all steps. adversary: of the second player.
        patience: steps without a smaller loss after which the images' rate is halved, in place of the schedule.
        classes_at_once: how many classes go through the network together. The gradient is the same; memory is not.

    A class's images have gradients of their own class alone, so that one step on the sum is what a step per class with
    an optimiser per class would be. Classes can therefore be divided among processes.
    """

    def __init__(
        self,
        images: SyntheticImages,
        networks: Networks,
        distance: Distance,
        *,
        scale: float = 1.0,
        calibration: float = 0.0,
        augment: SiameseAugment | None = SIAMESE,
        tap: str = "head:input",
        optimizer: OptimizerSettings = IMAGE_OPTIMIZER,
        adversary: OptimizerSettings | None = None,
        patience: int | None = None,
        classes_at_once: int | None = None,
    ) -> None:
        super().__init__()
        if classes_at_once is not None and classes_at_once < 1:
            raise UserError("classes_at_once", classes_at_once, "1 or more")
        self.automatic_optimization = False
        self.images, self.distance = images, distance
        self.networks = networks
        self.scale, self.calibration, self.augment, self.patience = scale, calibration, augment, patience
        self.optimizer_settings = optimizer
        self.adversary = adversary or OptimizerSettings("sgd", lr=1e-3, weight_decay=0.0, schedule="constant")
        self.classes_at_once = classes_at_once or len(images.classes)
        self.taps = Taps(networks.network, {"features": tap})
        self.steps_done = 0
        self.latest_terms: dict[str, Tensor] = {}
        if calibration:
            networks.trained(0)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        players = self._players()
        self.images.clamp_()
        expert = self.networks.draw()
        real = batch["input"].unflatten(0, (len(self.images.classes), -1))
        views = self._views()
        matched = torch.stack([self.match(real, views, *span) for span in self._spans()]).sum()
        min_max_step(self.scale * matched, *players, backward=self.manual_backward)
        terms = {"match": matched.detach()}
        if self.calibration:
            entropy = self.calibrate(self.networks.trained(expert))
            # The Trainer has counted this step already.
            min_max_step(self.calibration * entropy, players[0].optimizer, None, backward=self.manual_backward)
            terms["calibration"] = entropy.detach()
        total = self.scale * terms["match"] + self.calibration * terms.get("calibration", matched.new_zeros(()))
        self._step_schedules(float(total) / len(self.images.classes))
        self.steps_done += 1
        self.latest_terms = {**terms, "loss": total.detach()}

    def match(self, real: Tensor, views: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """The distance summed over classes number ``first`` to ``last``; real images ``[C, M, ...]`` of all classes."""
        real, views = real[first:last], views[first:last]
        with torch.no_grad():
            target = self.features(real.flatten(0, 1), views.repeat_interleave(real.shape[1]))
        made = self.images(first, last)
        ours = self.features(made, views.repeat_interleave(len(made) // len(real)))
        groups = (len(real), -1)
        return self.distance(ours.unflatten(0, groups), target.unflatten(0, groups)).sum()

    def calibrate(self, network: nn.Module) -> Tensor:
        """Cross-entropy of the synthetic images under a trained network, under a new draw of the augmentation."""
        made = self.images()
        views = self._views().repeat_interleave(len(made) // len(self.images.classes))
        logits = run_network(network, {"input": self._augmented(made, views)})["logits"]
        return cross_entropy(logits, self.images.labels)

    def features(self, images: Tensor, views: Tensor) -> Tensor:
        """Features ``[N, D]`` of images under the network in place."""
        with self.taps.capture() as signals:
            run_network(self.networks.network, {"input": self._augmented(images, views)})
        return signals["features"].flatten(1)

    def _augmented(self, images: Tensor, views: Tensor) -> Tensor:
        return images if self.augment is None else self.augment.images(images, views)

    def _views(self) -> Tensor:
        """One draw of the augmentation per class."""
        return torch.randint(2**62, (len(self.images.classes),), device=self.images.pixels.device)

    def _spans(self) -> list[tuple[int, int]]:
        count, size = len(self.images.classes), self.classes_at_once
        return [(first, min(first + size, count)) for first in range(0, count, size)]

    def _players(self) -> list[Any]:
        found: Any = self.optimizers()
        if not isinstance(found, list):
            return [found, None]
        # Lightning counts every step of every optimiser; one step of both is one.
        found[1]._on_before_step = found[1]._on_after_step = lambda: None
        return found

    def configure_optimizers(self) -> Any:
        settings = [(self.optimizer_settings, list(self.images.parameters()))]
        player = list(self.distance.parameters()) if isinstance(self.distance, nn.Module) else []
        if any(parameter.requires_grad for parameter in player):
            settings.append((self.adversary, player))
        steps = training_steps(self.trainer)
        built = [one.build(weights, steps) for one, weights in settings]
        schedules: list[Any] = [schedule for _, schedule in built]
        if self.patience is not None:
            schedules[0] = ReduceLROnPlateau(built[0][0], factor=0.5, patience=self.patience)
        return [optimizer for optimizer, _ in built], schedules

    def _step_schedules(self, loss: float) -> None:
        found: Any = self.lr_schedulers()
        for schedule in found if isinstance(found, list) else [found]:
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(loss)
            else:
                schedule.step()

    def setup(self, stage: str) -> None:
        self.steps_done = 0
        self.networks.network.to(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return move(batch, device)

    def configure_callbacks(self) -> list[Callback]:
        return [ExactResume()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["limbeck"] = {"steps_done": self.steps_done}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "limbeck" not in checkpoint:
            raise LimbeckError("this checkpoint was not written by DistributionMatching: its step is missing")
        self.steps_done = checkpoint["limbeck"]["steps_done"]

    def finish(self, about: dict[str, str] | None = None) -> DistilledSet:
        """The images as they are kept: clamped, eight bits."""
        self.taps.close()
        return self.images.distilled(about)


def distil(
    matching: DistributionMatching, real: Split, *, steps: int, real_batch: int = 128, seed: int = 0, **options: Any
) -> tuple[DistilledSet, History]:
    """Run ``steps`` steps on ``real``, with ``real_batch`` images of every class in each; the set and the log.

    Args:
        options: of ``engine.fit``, such as ``out`` and ``resume``.

    Raises:
        UserError: the classes of ``real`` are not those of the images.
    """
    classes = real.labels.unique().tolist()
    if classes != matching.images.classes:
        raise UserError(
            "classes of the real images", classes, f"those of the synthetic ones, {matching.images.classes}"
        )
    loader = ClassLoader(real, real_batch, seed=seed)
    history = fit(matching, loader, steps=steps, seed=seed, **{"accelerator": "cpu", **options})
    return matching.finish(), history


def feature_width(networks: Networks, images: Tensor, tap: str = "head:input") -> int:
    """Numbers per image at ``tap``, from a dry run on the first of ``images``."""
    taps = Taps(networks.network, {"features": tap})
    try:
        with torch.no_grad(), taps.capture() as signals:
            run_network(networks.network, {"input": images[:1]})
    finally:
        taps.close()
    return signals["features"].flatten(1).shape[1]
