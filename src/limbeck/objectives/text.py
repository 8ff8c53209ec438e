"""Objectives written as text: ``0.1 * cross_entropy + 0.9 * kl(temperature=4)``, without running any code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from limbeck.errors import UserError
from limbeck.objectives.aligned import LikelihoodMatching, UniversalLogitDistance
from limbeck.objectives.base import Objective
from limbeck.objectives.features import Cosine, FeatureMSE, SimilarityDistribution
from limbeck.objectives.logits import DIST, DKD, KL, JensenShannon, ProbabilityMSE, ReverseKL
from limbeck.objectives.scores import ScoreBCE, ScoreMSE
from limbeck.objectives.supervised import Brier, CrossEntropy, TargetMSE
from limbeck.schedules import Cosine as CosineSchedule
from limbeck.schedules import Linear, Schedule

NAMES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": CrossEntropy,
    "brier": Brier,
    "target_mse": TargetMSE,
    "kl": KL,
    "reverse_kl": ReverseKL,
    "jensen_shannon": JensenShannon,
    "probability_mse": ProbabilityMSE,
    "dkd": DKD,
    "dist": DIST,
    "cosine": Cosine,
    "feature_mse": FeatureMSE,
    "similarity": SimilarityDistribution,
    "score_bce": ScoreBCE,
    "score_mse": ScoreMSE,
    "likelihood_matching": LikelihoodMatching,
    "universal_logit_distance": UniversalLogitDistance,
}
SCHEDULES: dict[str, Callable[..., Schedule]] = {"linear": Linear, "cosine_schedule": CosineSchedule}
_FORM = "sums of terms such as 0.9 * kl(temperature=4)"


def parse_objective(text: str) -> Objective:
    """Read an objective from text; names and options are checked against the classes they stand for."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise UserError("objective", text, _FORM) from None
    built = _read(tree, text)
    if not isinstance(built, Objective):
        raise UserError("objective", text, _FORM)
    return built


def _read(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -_read(node.operand, text)
    if isinstance(node, ast.Name):
        return _call(node.id, [], {}, text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        given = {keyword.arg or "**": _read(keyword.value, text) for keyword in node.keywords}
        return _call(node.func.id, [_read(argument, text) for argument in node.args], given, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _read(node.left, text), _read(node.right, text)
        if isinstance(left, str) or isinstance(right, str):
            raise UserError("objective", text, _FORM)
        try:
            return left + right if isinstance(node.op, ast.Add) else left * right
        except TypeError:
            raise UserError("objective", text, _FORM) from None
    raise UserError("objective", text, _FORM)


def _call(name: str, arguments: list[Any], options: dict[str, Any], text: str) -> Any:
    table = {**NAMES, **SCHEDULES}
    if name not in table:
        raise UserError(f"objective {text!r}: name", name, table)
    try:
        inspect.signature(table[name]).bind(*arguments, **options)
        return table[name](*arguments, **options)
    except TypeError as error:
        allowed = str(inspect.signature(table[name])).replace("'", "")
        raise UserError(f"objective {name}", text, f"{name}{allowed}", str(error)) from None
