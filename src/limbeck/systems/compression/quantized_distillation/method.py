"""Model compression via distillation and quantization (Polino, Pascanu and Alistarh, ICLR 2018).

Every tensor is cut into buckets of 256 values, and each bucket scaled to [0, 1] and stored as points p_1 < .. < p_s:

    v = (w - beta) / alpha,    beta = min w,  alpha = max w - min w,    Q(w) = alpha p_k + beta,  k: p_k nearest to v.

Quantized distillation (QD): the points are uniform, p_k = k / (2^bits - 1), and the weights learn. Forward and
backward run at Q(w), and the gradient found there moves the full-precision shadow w:

    w <- w - lr dL/dw |_{Q(w)}.

Differentiable quantization (DQ): the weights of a trained network stay, and the points learn, from the network itself
as the teacher of its quantised copy:

    dL/dp_j = sum over the weights that take point j of alpha dL/dQ(w).

Mixed mode: an epoch of QD, an epoch of DQ whose quantised weights become the next shadow, and so on, ending on QD.

    L = 0.7 T^2 KL(teacher || student) + 0.3 CE,  T = 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from limbeck.engine import Distiller, OptimizerSettings, fit
from limbeck.errors import UserError
from limbeck.objectives import KL, AskTeacher, CrossEntropy, Objective
from limbeck.quantization import (
    LearnedPoints,
    PackedNetwork,
    QuantisedView,
    Scaling,
    UniformWeights,
    allocate_points,
    gradient_norms,
    weights_to_quantise,
)
from limbeck.signals import Batch, Forward, run_network
from limbeck.sources import Live, Source

POINT_OPTIMIZER = OptimizerSettings("sgd", lr=1e-4, weight_decay=0.0)


def distillation_loss(
    temperature: float = 2.0,
    soft_weight: float = 0.7,
    *,
    per_row: str = "sum",
    ask: str = "always",
    cutoff: float = 0.5,
) -> Objective:
    """``soft_weight T^2 KL(teacher || student) + (1 - soft_weight) CE``.

    Args:
        per_row: ``sum`` over the classes, or the released code's ``mean``, which makes the soft term C times weaker.
        ask, cutoff: for which samples the teacher is asked; see :class:`~limbeck.objectives.AskTeacher`.
    """
    loss = soft_weight * KL(temperature, per_row=per_row) + (1 - soft_weight) * CrossEntropy()
    return loss if ask == "always" else AskTeacher(loss, ask, cutoff=cutoff)


def quantized_distillation(
    student: nn.Module,
    teacher: Source | nn.Module | None,
    bits: int = 4,
    *,
    objective: Objective | None = None,
    bucket_size: int | None = 256,
    gradient: str = "straight_through",
    skip: Sequence[str] = (),
    optimizer: OptimizerSettings | None = None,
    **options: Any,
) -> Distiller:
    """Method 1: a distiller whose student is quantised in every forward pass, and for good by ``finish()``.

    ``options`` are the distiller's (``taps``, ``forward``). ``distiller.weights`` is the view, for :func:`packed`.
    """
    view = UniformWeights(student, bits, skip=skip, scaling=Scaling(bucket_size=bucket_size), gradient=gradient)
    return Distiller(student, objective or distillation_loss(), teacher, weights=view, optimizer=optimizer, **options)


def differentiable_quantization(
    network: nn.Module,
    bits: int = 4,
    *,
    batches: Iterable[Batch] | None = None,
    teacher: Source | nn.Module | None = None,
    start: str = "quantiles",
    objective: Objective | None = None,
    bucket_size: int | None = 256,
    skip: Sequence[str] = (),
    optimizer: OptimizerSettings = POINT_OPTIMIZER,
    forward: Forward = run_network,
    **options: Any,
) -> Distiller:
    """Method 2: a distiller that learns the points of a trained ``network`` and nothing else.

    Args:
        batches: labelled ones, of which five say how steep the loss is in every tensor and so how many points it
            gets; without them all get 2^bits.
        teacher: by default a copy of the network as it is now.
        start: where points begin, at ``quantiles`` or ``uniform``.
    """
    names, _ = weights_to_quantise(network, skip)
    counts: Any = bits
    if batches is not None:
        norms = gradient_norms(network.eval(), batches, CrossEntropy(), forward=forward)
        counts = allocate_points({name: norms[name] for name in names}, bits)
    view = LearnedPoints(network, counts, start=start, skip=skip, scaling=Scaling(bucket_size=bucket_size))
    return Distiller(
        network,
        objective or distillation_loss(),
        teacher if teacher is not None else Live(copy.deepcopy(network), forward=forward),
        weights=view,
        trainable=(),
        optimizer=optimizer,
        forward=forward,
        **options,
    )


def mixed(
    student: nn.Module,
    teacher: Source,
    loader: Callable[[int], Any],
    bits: int = 4,
    *,
    epochs: int,
    optimizer: OptimizerSettings,
    point_optimizer: OptimizerSettings = POINT_OPTIMIZER,
    annealed: bool = False,
    taught_points: bool = False,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    **fit_options: Any,
) -> Distiller:
    """Epochs of QD with one of DQ between each two of them; gives the last QD distiller, not yet finished.

    Args:
        loader: number of an epoch, QD and DQ counted alike -> its loader.
        optimizer: of QD. Its schedule begins anew in every epoch, since each must mend what the points before it
            changed; ``annealed`` spreads it over all epochs, after which nothing can be mended any more.
        taught_points: ``teacher`` teaches the points too. As published it is the shadow, which was never trained to
            be run without its rounding.
        options: of :func:`quantized_distillation`; those after it are of ``fit``.
    """
    learning = [weight for weight in student.parameters() if weight.requires_grad]
    for epoch in range(epochs):
        if epoch:
            batches = loader(2 * epoch - 1)
            points = differentiable_quantization(
                student, bits, batches=batches, teacher=teacher if taught_points else None, optimizer=point_optimizer
            )
            fit(points, batches, epochs=1, seed=seed + 2 * epoch - 1, **fit_options)
            points.finish()
            for weight in learning:
                weight.requires_grad_(True)
        now = optimizer
        if annealed:
            rate = optimizer.lr * optimizer.factor(2 * epoch + 1, 2 * epochs)
            now = replace(optimizer, lr=rate, schedule="constant", warmup=0.0)
        distiller = quantized_distillation(student, teacher, bits, optimizer=now, **(options or {}))
        fit(distiller, loader(2 * epoch), epochs=1, seed=seed + 2 * epoch, **fit_options)
    return distiller


def packed(distiller: Distiller) -> PackedNetwork:
    """The student as it is stored: codes, scales, points. Before ``finish()``, which writes the quantised weights."""
    if not isinstance(distiller.weights, QuantisedView):
        raise UserError("distiller", "one without quantised weights", "one that was not finished yet")
    return PackedNetwork.of(distiller.student, distiller.weights)


def after_training(network: nn.Module, bits: int, bucket_size: int | None = 256) -> PackedNetwork:
    """The rival: a trained network at the nearest uniform points, without any further training."""
    return PackedNetwork.of(network, UniformWeights(network, bits, scaling=Scaling(bucket_size=bucket_size)))
