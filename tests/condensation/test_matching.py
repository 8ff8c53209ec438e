"""The matching loop: it lowers the distance, plays two players, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.condensation.experts import FreshNetworks
from limbeck.condensation.images import SyntheticImages
from limbeck.condensation.matching import DistributionMatching, distil, feature_width
from limbeck.data.siamese import SiameseAugment
from limbeck.data.split import Split
from limbeck.engine import OptimizerSettings
from limbeck.errors import UserError
from limbeck.losses import cross_entropy, mean_discrepancy
from limbeck.models.convnet import ConvNet
from tests.condensation.helpers import expert_pool
from tests.engine.helpers import Cut, Die

TARGET = torch.arange(3).repeat(8)
REAL = Split(
    torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3 + TARGET.view(-1, 1, 1, 1) * 0.3,
    TARGET,
    torch.arange(24),
)


def build() -> nn.Module:
    return ConvNet(3, 1, 8, depth=1, width=4)


def means(synthetic: Tensor, real: Tensor) -> Tensor:
    return mean_discrepancy(synthetic, real, reduction="none")


class Stretch(nn.Module):
    """A distance with a player: it may weigh the features, within bounds."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(width))

    def forward(self, synthetic: Tensor, real: Tensor) -> Tensor:
        return means(synthetic * self.raw.sigmoid(), real * self.raw.sigmoid())


def matching(distance: Any = means, **options: Any) -> DistributionMatching:
    images = SyntheticImages.start("noise", REAL, 1, factor=2)
    return DistributionMatching(images, expert_pool(build), distance, **options)


def test_it_brings_the_distributions_together() -> None:
    found = matching(optimizer=OptimizerSettings(lr=0.05, weight_decay=0.0, schedule="constant"))
    made, history = distil(found, REAL, steps=40, real_batch=8, log_every=1)
    values = history.curve("match")["y"]
    assert sum(values[-5:]) < 0.3 * sum(values[:5])
    assert history.steps == 40
    brightness = made.split().input.mean(dim=(1, 2, 3)).view(3, 4).mean(dim=1)
    assert brightness.tolist() == sorted(brightness.tolist()), "brighter classes have brighter images"
    assert made.tensors["pixels"].dtype == torch.uint8


def test_real_and_synthetic_share_a_draw_and_classes_have_their_own() -> None:
    found = matching()
    views, seen = torch.tensor([1, 2, 3]), []

    class Watch(SiameseAugment):
        def images(self, images: Tensor, view: Tensor) -> Tensor:
            seen.append(view.tolist())
            return images

    found.augment = Watch()
    found.match(REAL.input[TARGET.argsort(stable=True)].unflatten(0, (3, 8)), views)  # type: ignore[index]
    assert seen == [[1] * 8 + [2] * 8 + [3] * 8, [1] * 4 + [2] * 4 + [3] * 4]


def test_the_gradient_reaches_the_images_of_the_class_alone() -> None:
    found = matching(augment=None)
    real = REAL.input[TARGET.argsort(stable=True)].unflatten(0, (3, 8))  # type: ignore[index]
    found.networks.draw()
    found.match(real, torch.zeros(3, dtype=torch.int64), 1, 2).backward()
    slopes = found.images.pixels.grad
    assert slopes is not None
    assert slopes[1].abs().max() > 0
    assert slopes[0].abs().max() == slopes[2].abs().max() == 0


@pytest.mark.parametrize("calibration", [0.0, 1.0])
def test_classes_in_parts_give_the_same_set(calibration: float) -> None:
    sets = [
        distil(matching(calibration=calibration, classes_at_once=size), REAL, steps=3, real_batch=4)[0]
        for size in (None, 1, 2)
    ]
    for other in sets[1:]:
        gap = sets[0].tensors["pixels"].int() - other.tensors["pixels"].int()
        assert gap.abs().max() <= 1, "but for the order of sums"


def test_calibration_lowers_the_cross_entropy_under_the_trained_end() -> None:
    def entropy(made: Any) -> float:
        images = SyntheticImages.load(made)
        return sum(float(cross_entropy(expert_pool(build).trained(one)(images()), images.labels)) for one in range(2))

    faster = OptimizerSettings(lr=0.05, weight_decay=0.0, schedule="constant")
    sets = [
        distil(matching(scale=1e-3, calibration=weight, optimizer=faster, augment=None), REAL, steps=20, real_batch=4)[
            0
        ]
        for weight in (0.0, 1.0)
    ]
    assert entropy(sets[1]) < entropy(sets[0]) - 0.1


def test_a_second_player_goes_up_while_the_images_go_down() -> None:
    found = matching(Stretch(), adversary=OptimizerSettings("sgd", lr=1.0, weight_decay=0.0, schedule="constant"))
    distil(found, REAL, steps=5, real_batch=4)
    assert isinstance(found.distance, Stretch)
    assert found.distance.raw.min() >= 0, "larger features, larger distance"
    assert found.distance.raw.max() > 0
    frozen = Stretch().requires_grad_(False)
    distil(matching(frozen), REAL, steps=5, real_batch=4)
    assert frozen.raw.abs().max() == 0


def test_the_rate_is_halved_when_nothing_improves() -> None:
    found = matching(lambda synthetic, real: means(synthetic, real) * 0 + 1, patience=2)
    distil(found, REAL, steps=8, real_batch=4)
    assert found.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 / 4)


def test_otherwise_it_follows_its_schedule() -> None:
    found = matching(Stretch(), optimizer=OptimizerSettings(lr=0.02, schedule="cosine"))
    distil(found, REAL, steps=4, real_batch=4)
    rates = [one.param_groups[0]["lr"] for one in found.trainer.optimizers]
    assert rates == pytest.approx([0.0, 1e-3])


@pytest.mark.parametrize("step", [2, 5])
def test_it_resumes_bit_for_bit(step: int, tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        found = matching(Stretch(), calibration=1.0, patience=1)
        made = distil(found, REAL, steps=7, real_batch=4, seed=5, **options)[0]
        return made.tensors["pixels"], found.images.pixels.detach(), found.distance.raw.detach()  # type: ignore[union-attr]

    whole = run()
    with pytest.raises(Cut):
        run(out=tmp_path, checkpoint_seconds=0.0, callbacks=[Die(step)])
    resumed = run(out=tmp_path, checkpoint_seconds=0.0, resume=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed))


def test_networks_are_no_part_of_what_is_learned_or_kept() -> None:
    found = matching(Stretch())
    assert set(found.state_dict()) == {"images.pixels", "images.target", "distance.raw"}


def test_any_tap_of_any_network_gives_features() -> None:
    fresh = FreshNetworks(build)
    assert feature_width(fresh, REAL.input) == 64  # type: ignore[arg-type]
    assert feature_width(fresh, REAL.input, "blocks.0.conv") == 4 * 64  # type: ignore[arg-type]
    with pytest.raises(UserError, match="tap features"):
        feature_width(fresh, REAL.input, "neck")  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    images = SyntheticImages.start("noise", REAL, 1)
    with pytest.raises(UserError, match="calibration"):
        DistributionMatching(images, FreshNetworks(build), means, calibration=1.0)
    with pytest.raises(UserError, match="classes_at_once"):
        matching(classes_at_once=0)
    with pytest.raises(UserError, match="classes of the real images"):
        distil(matching(), REAL.subset((TARGET < 2).nonzero().squeeze(-1)), steps=1, real_batch=2)
