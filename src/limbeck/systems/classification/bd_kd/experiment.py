"""The experiments of bd-kd: every balance from the same online trainer, two rivals outside it, two regimes.

In all mutual arms the teacher's loss is the same, so that the arms differ in the student's loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from limbeck.experiment import Arm, Claim, Exact
from limbeck.experiment.peers import PeerExperiment
from limbeck.measure import expected_calibration_error
from limbeck.objectives import KL, CrossEntropy, Objective

from .method import Balance, BalancedDivergence, EntropyGate, FixedBalance, mutual_learning

TEMPERATURE = 2.0
Peers = Mapping[str, Callable[[], Objective] | None]

ALONE: Peers = {"student": None, "teacher": None}


def together(balance: Balance) -> Peers:
    """Student and teacher learn from each other, the student with ``balance``."""
    return {
        "student": lambda: BalancedDivergence(balance, TEMPERATURE),
        "teacher": lambda: mutual_learning(TEMPERATURE),
    }


def after(soft_weight: float) -> Peers:
    """A teacher that learns alone, then a student of plain KD."""
    return {"student": lambda: CrossEntropy() + soft_weight * KL(TEMPERATURE), "teacher": None}


ARMS = {
    "independent": Arm(ALONE, "each network from the labels alone", "none"),
    "independent-rescaled": Arm(
        ALONE, "the same, and a temperature fitted on 500 held-out images", "rival", {"rescaled": True}
    ),
    "kd": Arm(after(1.0), "plain KD from the finished teacher", "rival", {"offline": True}),
    "kd-3": Arm(after(3.0), "plain KD from the finished teacher, soft weight 3", "rival", {"offline": True}),
    "dml": Arm(together(FixedBalance(1, 0)), "forward KL only: deep mutual learning", "rival"),
    "dml-3": Arm(together(FixedBalance(3, 0)), "deep mutual learning with the gate's sum of weights", "control"),
    "reverse": Arm(together(FixedBalance(0, 1)), "reverse KL only", "ablation"),
    "symmetric": Arm(together(FixedBalance(1, 1)), "both directions, fixed at (1, 1)", "ablation"),
    "symmetric-3": Arm(
        together(FixedBalance(1.5, 1.5)), "both directions, fixed, with the gate's sum of weights", "control"
    ),
    "gate-a": Arm(together(EntropyGate()), "the entropy gate: sharpen the unsure, spread the sure", "method"),
    "gate-b": Arm(together(EntropyGate(inverted=True)), "the gate turned round", "control"),
    "gate-smooth": Arm(together(EntropyGate(sharpness=1.0)), "a sigmoid of the entropy gap", "ablation"),
}

ABSTRACT = "[abstract]"
ABLATION = "[abstract: ablations]"


def wrong_direction() -> float:
    """Deviation of both directions of KL from values computed by hand for three classes."""
    student, teacher = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.7, 0.2, 0.1]]).log()
    terms = BalancedDivergence(FixedBalance(), 1.0)(
        {"logits": student}, {"logits": teacher}, {"id": torch.arange(1), "target": torch.tensor([0])}
    )
    by_hand = {"cross_entropy": 0.6931472, "forward_kl": 0.0851229, "reverse_kl": 0.0920328}
    return max(abs(float(terms[name]) - value) for name, value in by_hand.items())


def loss_at_equality() -> float:
    """The distillation loss and its gradient when both networks say the same, in any balance."""
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for balance in (EntropyGate(), EntropyGate(inverted=True), EntropyGate(sharpness=4.0), FixedBalance()):
        student = logits.clone().requires_grad_()
        batch = {"id": torch.arange(64), "target": torch.zeros(64, dtype=torch.int64)}
        terms = BalancedDivergence(balance)({"logits": student}, {"logits": logits}, batch)
        soft = terms["forward_kl"] + terms["reverse_kl"]
        (gradient,) = torch.autograd.grad(soft, student)
        worst = max(worst, abs(float(soft.detach())), float(gradient.abs().max()))
    return worst


def calibrated_predictor() -> float:
    """ECE of a predictor that is right as often as it says, on 200,000 samples."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200_000, 10, generator=generator)
    target = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)
    return expected_calibration_error(logits, target)


EXACT = (
    Exact("Forward and reverse KL point the way they are written", wrong_direction, 1e-6, "[recalled] definition"),
    Exact("Two networks that agree have nothing to teach each other", loss_at_equality, 1e-6, "[recalled] definition"),
    Exact("The ECE of a calibrated predictor tends to 0", calibrated_predictor, 5e-3, "[recalled] Guo et al., 2017"),
)


def quality_claims() -> tuple[Claim, ...]:
    """What the paper says of accuracy; asked in both regimes."""
    return (
        Claim("Its student beats one trained alone", "gate-a", "independent", "accuracy", source=ABSTRACT),
        Claim("Its student beats deep mutual learning", "gate-a", "dml", "accuracy", source=ABSTRACT),
        Claim("Its student beats plain KD from a finished teacher", "gate-a", "kd-3", "accuracy", source=ABSTRACT),
        Claim(
            "Its teacher loses no more than half a point against one trained alone",
            "gate-a",
            "independent",
            "teacher_accuracy",
            margin=-0.005,
            source=ABSTRACT,
        ),
        Claim("The gate beats a fixed balance of the same sum", "gate-a", "symmetric-3", "accuracy", source=ABLATION),
        Claim("The gate's direction matters: it beats its inversion", "gate-a", "gate-b", "accuracy", source=ABLATION),
        Claim(
            "The gain is not only more distillation: it beats mutual learning of the same sum",
            "gate-a",
            "dml-3",
            "accuracy",
            source=ABLATION,
        ),
    )


def calibration_claim(text: str, over: str, metric: str = "ece", margin: float = 0.0, source: str = ABSTRACT) -> Claim:
    """gate-a against ``over`` on a calibration figure, where lower is better."""
    return Claim(text, "gate-a", over, metric, margin=margin, better="lower", source=source)


class BalancedPeers(PeerExperiment):
    """What both regimes share."""

    arms = ARMS
    traces = ("student/entropy_gap", "student/gate_share")


class Few(BalancedPeers):
    """The sheet's small experiment: networks of 4 and 70 thousand weights, 3,000 images, 15 epochs."""

    title = "Small regularised networks on 3,000 images"
    testbed = "fashion_mnist:peers"
    claims = (
        *quality_claims(),
        calibration_claim("Its NLL is lower than that of a student trained alone", "independent", "nll"),
        calibration_claim("Its ECE is lower than that of a student trained alone", "independent"),
        *EXACT,
    )


class OverParameterised(BalancedPeers):
    """Networks of 16 and 70 thousand weights on 1,500 images for 30 epochs: alone they are overconfident."""

    title = "Over-parameterised networks on 1,500 images"
    testbed = "fashion_mnist:spare_peers"
    metric = "ece"
    claims = (
        calibration_claim("Its ECE is a point lower than that of a student trained alone", "independent", margin=0.01),
        calibration_claim("Its ECE is lower than that of deep mutual learning", "dml"),
        calibration_claim("Its ECE is lower than that of plain KD from a finished teacher", "kd"),
        calibration_claim(
            "It needs no recalibration: its ECE is at most a point above that of temperature scaling",
            "independent-rescaled",
            margin=-0.01,
        ),
        calibration_claim("Its NLL is lower than that of a student trained alone", "independent", "nll"),
        calibration_claim("Its Brier score is lower than that of a student trained alone", "independent", "brier"),
        calibration_claim(
            "The gate calibrates better than a fixed balance of the same sum", "symmetric-3", source=ABLATION
        ),
        calibration_claim("The gate calibrates better than its inversion", "gate-b", source=ABLATION),
        calibration_claim("The gate calibrates better than mutual learning of the same sum", "dml-3", source=ABLATION),
        *quality_claims(),
    )


EXPERIMENTS = {"few": Few, "over_parameterised": OverParameterised}
