"""Exact checks: what characteristic functions see and means do not; what a step costs beside trajectory matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from limbeck.condensation import SyntheticImages
from limbeck.data.split import Split
from limbeck.losses import characteristic_discrepancy, cross_entropy, mean_discrepancy
from limbeck.measure.memory import kept_for_backward
from limbeck.models.convnet import ConvNet

from .method import CharacteristicDistance

_CLASSES, _PER_CLASS, _REAL, _INNER, _INNER_BATCH = 10, 10, 32, 10, 100


def blindness_of_means() -> float:
    """0 if all holds: for a standard normal and the fair two points +1 and -1, which share mean and variance, the mean
    discrepancy is 0 and NCFD is what theory says, ``mean_t |exp(-t^2/2) - cos t| / sqrt(2)``."""
    count = 200_001
    normal = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    normal = normal / normal.square().mean().sqrt()
    points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    t = torch.linspace(0.1, 4, 40, dtype=torch.float64)[:, None]
    found = float(characteristic_discrepancy(points, normal, t))
    expected = float(((-(t**2) / 2).exp() - t.cos()).abs().mean()) / 2**0.5
    blind = float(mean_discrepancy(points, normal))
    separates = 0.0 if found > 0.1 else 1.0
    return abs(found - expected) + blind + separates


def memory_ratio() -> float:
    """Bytes that one NCFM step keeps for its backward pass, by those of one trajectory-matching step."""
    return kept_for_backward(_ncfm_step(*_setting())) / kept_for_backward(_trajectory_step(*_setting()))


def work_ratio() -> float:
    """Floating-point operations of convolutions and products in one step, NCFM's by trajectory matching's."""
    return _operations(_ncfm_step(*_setting())) / _operations(_trajectory_step(*_setting()))


def _setting() -> tuple[SyntheticImages, ConvNet, Tensor]:
    """The same hundred images for both, a network, and real images; the pixels play no part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target = torch.arange(_CLASSES).repeat_interleave(_PER_CLASS)
        real = Split(torch.rand(_CLASSES * _PER_CLASS, 1, 16, 16), target, torch.arange(len(target)))
        images = SyntheticImages.start("noise", real, _PER_CLASS, factor=2)
        return images, ConvNet(_CLASSES, 1, 16, depth=2, width=16), torch.rand(_CLASSES * _REAL, 1, 16, 16)


def _ncfm_step(images: SyntheticImages, network: ConvNet, real: Tensor) -> Callable[[], Any]:
    """Matching and calibration, one after the other in the same graph."""
    network.requires_grad_(False)
    distance = CharacteristicDistance(256)

    def step() -> Tensor:
        with torch.no_grad():
            target = network.features(real).unflatten(0, (_CLASSES, -1))
        made = images()
        match: Tensor = distance(network.features(made).unflatten(0, (_CLASSES, -1)), target).sum()
        return 300 * match + cross_entropy(network(made), images.labels)

    return step


def _trajectory_step(images: SyntheticImages, network: ConvNet, real: Tensor) -> Callable[[], Any]:
    """Matching training trajectories (Cazenavette et al., CVPR 2022): ten steps of SGD on synthetic batches, through
    which the gradient of the distance to an expert's later weights flows back. The method itself takes thirty to fifty
    steps of up to 256 images, so that this is a lower bound of its cost."""
    start = {name: value.detach().requires_grad_() for name, value in network.named_parameters()}
    goal = {name: value.detach() + 0.01 for name, value in start.items()}

    def step() -> Tensor:
        weights = dict(start)
        made = images()
        for number in range(_INNER):
            rows = torch.arange(number * _INNER_BATCH, (number + 1) * _INNER_BATCH) % len(made)
            logits = functional_call(network, weights, (made[rows],))
            loss = cross_entropy(logits, images.labels[rows])
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: value - 0.01 * slope for (name, value), slope in zip(weights.items(), slopes)}
        moved = sum((weights[name] - goal[name]).square().sum() for name in goal)
        whole = sum((start[name] - goal[name]).square().sum() for name in goal)
        return torch.as_tensor(moved / whole)

    return step


def _operations(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step().backward()
    return int(counter.get_total_flops())
