"""The sheet's exact checks and pitfalls of gt-self-distill."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from torch import nn
from torch.nn.functional import mse_loss, one_hot

from limbeck.data.loaders import TensorLoader
from limbeck.engine import Distiller, Generations, OptimizerSettings
from limbeck.errors import UserError
from limbeck.experiment import Exact
from limbeck.models.small import MLP
from limbeck.objectives import total, with_weight_norm
from limbeck.systems.theory.gt_self_distill import bench as benches
from limbeck.systems.theory.gt_self_distill import toy
from limbeck.systems.theory.gt_self_distill.classification import DigitsNoise
from limbeck.systems.theory.gt_self_distill.experiment import EXPERIMENTS
from limbeck.systems.theory.gt_self_distill.kernel import KernelSelfDistiller
from limbeck.systems.theory.gt_self_distill.method import (
    OPTIMAL,
    NetworkSelfDistiller,
    Weight,
    mixture,
    optimal_alpha,
    probabilities,
)

RNG = np.random.default_rng(0)
INPUTS, HELD_OUT, FAR = RNG.normal(size=(30, 3)), RNG.normal(size=(12, 3)), RNG.normal(size=(7, 3))
WEIGHTS = RNG.normal(size=(3, 2))
TARGET, HELD_OUT_TARGET = (np.sin(x @ WEIGHTS) + 0.5 * RNG.normal(size=(len(x), 2)) for x in (INPUTS, HELD_OUT))


def fitted(alpha: Any = 0.3, generations: int = 6, target: Any = TARGET, **options: Any) -> KernelSelfDistiller:
    given = {"ridge": 0.2, "gamma": 0.5, **options}
    validation = (HELD_OUT, HELD_OUT_TARGET) if isinstance(alpha, str) else None
    return KernelSelfDistiller(alpha, generations=generations, **given).fit(INPUTS, target, validation)


# The published toy.


def test_the_published_columns_to_five_digits_and_which_alpha_they_are() -> None:
    assert toy.from_published(0.0, 0.0) <= 5e-6
    assert toy.from_published(0.35, 0.35) <= 5e-6
    assert toy.from_published(0.25, 0.25) <= 5e-6
    assert toy.from_published(0.25, 0.35) > 1e-3


def test_ratios_of_b_never_fall_without_truth_but_pass_their_limit_with_some() -> None:
    assert toy.fallen_ratio(0.0) <= 1e-12
    assert toy.fallen_ratio(0.35) > 1e-3
    assert toy.fallen_ratio(0.35, "first") <= 1e-12


# Kernel ridge.


def by_inverse(alphas: list[float], generations: int) -> list[np.ndarray]:
    """The iteration as the sheet writes it, with an explicit inverse."""
    gram = np.exp(-0.5 * ((INPUTS[:, None] - INPUTS[None]) ** 2).sum(-1))
    inverse = np.linalg.inv(gram + 0.2 * np.eye(len(gram)))
    fits, teacher = [], TARGET
    for number in range(generations):
        alpha = alphas[number - 1] if number else 1.0
        teacher = gram @ inverse @ (alpha * TARGET + (1 - alpha) * teacher)
        fits.append(teacher)
    return fits


@pytest.mark.parametrize("alphas", [[0.0] * 5, [0.35] * 5, [1.0] * 5, [0.9, 0.0, 0.4, 1.0, 0.2]])
def test_steps_are_the_iteration(alphas: list[float]) -> None:
    for found, expected in zip(fitted(alphas).chain_, by_inverse(alphas, 6), strict=True):
        np.testing.assert_allclose(found.fitted, expected, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_the_direct_form_is_the_iteration(alpha: float) -> None:
    model = fitted(alpha, 20)
    for one in model.chain_:
        jump = model.direct(int(one.number))
        np.testing.assert_allclose(jump.fitted, one.fitted, atol=1e-10)
        np.testing.assert_allclose(model.predict(FAR, jump), model.predict(FAR, int(one.number)), atol=1e-10)


def test_the_diagonal_of_b_is_the_sum_and_the_recursion_of_the_paper() -> None:
    found = fitted(0.35, 8).sparsification()
    first = found.eigenvalues / (found.eigenvalues + 0.2)
    left = first
    for tau, row in enumerate(found.diagonal, start=1):
        summed = 0.65 ** (tau - 1) * first**tau + 0.35 * sum(0.65 ** (i - 1) * first**i for i in range(1, tau))
        np.testing.assert_allclose(row, summed, atol=1e-12)
        np.testing.assert_allclose(row, left, atol=1e-12)
        left = first * (0.65 * left + 0.35)
    assert (np.diff(found.eigenvalues) <= 0).all()
    assert (np.diff(found.degrees_of_freedom) < 0).all()


@pytest.mark.parametrize("alpha", [0.05, 0.35, 1.0])
def test_the_limit_is_a_ridge_with_lambda_over_alpha(alpha: float) -> None:
    model = fitted(alpha, 400)
    ridge = KernelRidge(alpha=0.2 / alpha, kernel="rbf", gamma=0.5).fit(INPUTS, TARGET)
    np.testing.assert_allclose(model.predict(FAR, model.limit()), ridge.predict(FAR), atol=1e-10)
    np.testing.assert_allclose(model.predict(FAR), ridge.predict(FAR), atol=1e-7)


def test_without_truth_the_limit_is_exactly_zero() -> None:
    model = fitted(0.0)
    assert not model.predict(FAR, model.limit()).any()


def test_a_generation_minimises_the_weighted_objective() -> None:
    model = fitted(0.3, 3)
    teacher, best, gram = model.chain_[1].fitted, model.chain_[2].coefficients, model.gram_

    def objective(coefficients: np.ndarray) -> float:
        said = gram @ coefficients
        hard, soft = ((said - one) ** 2 for one in (TARGET, teacher))
        return float((0.15 * hard + 0.35 * soft).sum() + 0.1 * np.trace(coefficients.T @ gram @ coefficients))

    for _ in range(20):
        assert objective(best) <= objective(best + 1e-3 * RNG.normal(size=best.shape))
    gradient = gram @ (gram @ best - 0.3 * TARGET - 0.7 * teacher + 0.2 * best)
    assert np.abs(gradient).max() < 1e-10


def test_alpha_star_beats_or_ties_a_grid_at_every_step_and_is_least_squares() -> None:
    model = fitted(OPTIMAL, 1)
    for _ in range(5):
        best = model.best_alpha(HELD_OUT, HELD_OUT_TARGET)
        reached, *grid = model.sweep(HELD_OUT, HELD_OUT_TARGET, [best.alpha, *np.linspace(0, 1, 101)])
        assert reached <= min(grid) + 1e-12
        step = model.step()
        assert step.weight == best
        assert np.mean((model.predict(HELD_OUT) - HELD_OUT_TARGET) ** 2) == pytest.approx(reached, abs=1e-12)


def test_columns_share_one_alpha() -> None:
    truth, hard, soft = RNG.normal(size=(3, 9, 4))
    best = optimal_alpha(truth, hard, soft).unclipped
    numerator = sum((truth[:, c] - soft[:, c]) @ (hard[:, c] - soft[:, c]) for c in range(4))
    denominator = sum((hard[:, c] - soft[:, c]) @ (hard[:, c] - soft[:, c]) for c in range(4))
    assert best == pytest.approx(numerator / denominator)
    assert best == pytest.approx(optimal_alpha(truth.ravel(), hard.ravel(), soft.ravel()).unclipped)


def test_alpha_star_is_clipped_and_says_what_it_was() -> None:
    hard, soft = np.array([1.0, 0.0]), np.array([0.0, 0.0])
    assert optimal_alpha([3.0, 0.0], hard, soft) == Weight(1.0, 3.0)
    assert optimal_alpha([-1.0, 0.0], hard, soft) == Weight(0.0, -1.0)


@pytest.mark.parametrize("noise", [0.0, 1e-17])
def test_where_both_predict_the_same_alpha_is_one(noise: float) -> None:
    same = np.array([0.3, 0.7])
    assert optimal_alpha([1.0, 0.0], same, same + noise) == Weight(1.0, 1.0)
    # The first step's two fits are the same, so is its alpha.
    model = KernelSelfDistiller(OPTIMAL, ridge=0.2, generations=0).fit(INPUTS, TARGET, (HELD_OUT, HELD_OUT_TARGET))
    assert model.best_alpha(HELD_OUT, HELD_OUT_TARGET) == Weight(1.0, 1.0)


def test_on_training_samples_alpha_would_always_be_one_so_validation_is_asked_for() -> None:
    model = fitted(0.2, 1)
    for _ in range(4):
        assert model.best_alpha(INPUTS, TARGET).alpha == pytest.approx(1.0, abs=1e-9) or (
            model.best_alpha(INPUTS, TARGET).unclipped >= 1.0
        )
        model.step()
    with pytest.raises(UserError, match="validation: given nothing"):
        KernelSelfDistiller(OPTIMAL).fit(INPUTS, TARGET)
    with pytest.raises(UserError, match="validation: given nothing"):
        NetworkSelfDistiller(small_chain(), OPTIMAL)


def test_alpha_weighs_the_truth() -> None:
    plain, pure = fitted(1.0), fitted(0.0)
    np.testing.assert_allclose(plain.chain_[5].fitted, plain.chain_[0].fitted, atol=1e-12)
    assert np.square(pure.chain_[5].fitted).sum() < 0.8 * np.square(plain.chain_[5].fitted).sum()


def test_a_singular_gram_matrix_without_ridge_is_refused_and_with_one_is_fine() -> None:
    doubled, target = np.vstack([INPUTS, INPUTS[:5]]), np.vstack([TARGET, TARGET[:5]])
    with pytest.raises(UserError, match="ridge: given 0.*the Gram matrix with this ridge is singular"):
        KernelSelfDistiller(0.5, ridge=0.0, gamma=0.5).fit(doubled, target)
    assert np.isfinite(KernelSelfDistiller(0.5, ridge=1e-3, gamma=0.5).fit(doubled, target).predict(FAR)).all()
    exact = KernelSelfDistiller(0.5, ridge=0.0, gamma=5.0, generations=3).fit(INPUTS, TARGET)
    np.testing.assert_allclose(exact.chain_[2].fitted, TARGET, atol=1e-6)


def test_precomputed_linear_and_own_kernels_agree() -> None:
    named = KernelSelfDistiller(0.4, ridge=0.5, kernel="linear").fit(INPUTS, TARGET)
    given = KernelSelfDistiller(0.4, ridge=0.5, kernel="precomputed").fit(INPUTS @ INPUTS.T, TARGET)
    own = KernelSelfDistiller(0.4, ridge=0.5, kernel=lambda a, b: float(a @ b)).fit(INPUTS, TARGET)
    expected = named.predict(FAR)
    np.testing.assert_allclose(given.predict(FAR @ INPUTS.T), expected, atol=1e-10)
    np.testing.assert_allclose(own.predict(FAR), expected, atol=1e-10)
    with pytest.raises(UserError, match="positive semidefinite"):
        KernelSelfDistiller(0.4, ridge=900.0, kernel="precomputed").fit(-INPUTS @ INPUTS.T + 3, TARGET).sparsification()
    with pytest.raises(UserError, match="precomputed kernel"):
        KernelSelfDistiller(0.4, kernel="precomputed").fit(INPUTS, TARGET)


def test_it_is_a_scikit_learn_regressor() -> None:
    model = KernelSelfDistiller(0.4, ridge=0.5, generations=2)
    assert clone(model).get_params() == model.get_params()
    found = GridSearchCV(model, {"alpha": [0.1, 0.9], "ridge": [0.1, 1.0]}, cv=3).fit(INPUTS, TARGET[:, 0])
    assert found.predict(FAR).shape == (7,)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((4, 2), np.nan), np.zeros(4))


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: fitted(1.5), "alpha: given 1.5"),
        (lambda: fitted([0.5], 4), "alpha: given 1 numbers; allowed: 2 or more"),
        (lambda: fitted(ridge=-1.0), "ridge: given -1.0"),
        (lambda: fitted("best"), "alpha: given best"),
        (lambda: fitted([0.5] * 5).direct(3), "the closed forms hold for a fixed alpha"),
        (lambda: fitted().direct(0), "number: given 0"),
        (lambda: fitted().predict(FAR, 9), "generation: given 9; allowed: 1 to 6"),
        (lambda: fitted().best_alpha(HELD_OUT, HELD_OUT_TARGET[:, 0]), "validation target: given 1 columns"),
        (lambda: optimal_alpha([1.0], [1.0, 2.0], [1.0, 2.0]), "predictions"),
        (lambda: mixture(-0.1), "alpha: given -0.1"),
        (lambda: NetworkSelfDistiller(small_chain(), "best"), "alpha: given best"),
        (lambda: NetworkSelfDistiller(small_chain(epochs=1), []).fit(2), "alpha: given 0 numbers; allowed: 1 or more"),
    ],
)
def test_wrong_use_says_what_would_do(use: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        use()


# Networks.


def samples(count: int = 60) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    return {"input": inputs, "target": inputs[:, :3].argmax(-1), "id": torch.arange(count)}


def small_chain(**options: Any) -> Generations:
    given = {
        "epochs": 3, "optimizer": OptimizerSettings("adam", 1e-2, 0.0, "constant"), "cached": True,
        "forward": with_weight_norm, "accelerator": "cpu", **options,
    }  # fmt: skip
    return Generations(lambda number: MLP(6, (8,), 3), TensorLoader(samples(), 20), **given)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_the_loss_is_the_released_one(alpha: float) -> None:
    student, teacher, batch = MLP(6, (8,), 3), MLP(6, (8,), 3), samples()
    found = total(mixture(alpha)(with_weight_norm(student, batch), {"logits": teacher(batch["input"])}, batch))
    said, taught = (network(batch["input"]).softmax(1) for network in (student, teacher))
    truth = one_hot(batch["target"], 3).float()
    norms = sum(torch.norm(weight) for weight in student.parameters())
    torch.testing.assert_close(
        found, alpha * mse_loss(said, truth) + (1 - alpha) * mse_loss(said, taught) + 1e-4 * norms
    )
    assert mixture(alpha).needs.teacher == (() if alpha == 1 else ("logits",))
    assert mixture(alpha).needs.target == (alpha > 0)


def test_no_gradient_reaches_the_teacher_and_none_of_it_is_in_the_checkpoint() -> None:
    chain = small_chain(cached=False)
    chain.grow(mixture(1.0))
    teacher = chain.teacher(("logits",))
    distiller = Distiller(MLP(6, (8,), 3), mixture(0.5), teacher, forward=with_weight_norm)
    batch = samples()
    total(distiller.objective(distiller.student_signals(batch), distiller.teacher_signals(batch), batch)).backward()
    assert all(parameter.grad is None for parameter in chain.networks[0].parameters())
    assert set(distiller.state_dict()) == {f"student.{name}" for name in chain.networks[0].state_dict()}
    distiller.train()
    assert not any(module.training for module in chain.networks[0].modules())


def test_alpha_star_of_networks_is_the_formula_on_their_validation_probabilities() -> None:
    held_out = [samples(25)]
    method = NetworkSelfDistiller(small_chain(), OPTIMAL, validation=held_out).fit(2)
    other = small_chain()
    first, soft = other.grow(mixture(1.0)), other.attempt(mixture(0.0), "soft")
    truth, hard = probabilities(first, held_out)
    expected = optimal_alpha(truth, hard, probabilities(soft, held_out)[1])
    assert method.weights == [expected]
    assert len(method.chain.histories) == (3 if expected.alpha > 0 else 2)
    said = probabilities(soft, held_out)[1]

    def missed(alpha: float) -> float:
        return float((alpha * hard + (1 - alpha) * said - truth).square().sum())

    assert missed(expected.unclipped) < min(missed(expected.unclipped - 0.1), missed(expected.unclipped + 0.1))


def test_an_estimate_of_zero_takes_the_network_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    method = NetworkSelfDistiller(small_chain(), OPTIMAL, validation=[samples(25)])
    monkeypatch.setattr(method, "estimate", lambda soft: Weight(0.0, -0.3))
    method.fit(2)
    assert set(method.chain.histories) == {"generation-0", "generation-1-soft"}
    other = small_chain()
    other.grow(mixture(1.0))
    kept, trained = method.chain.networks[1], other.grow(mixture(0.0))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), trained.parameters(), strict=True))


def test_weights_may_differ_by_generation() -> None:
    method = NetworkSelfDistiller(small_chain(), [1.0, 0.0]).fit(3)
    assert [one.alpha for one in method.weights] == [1.0, 0.0]


def test_batchnorm_of_an_ancestor_uses_what_it_learned() -> None:
    chain = Generations(
        lambda number: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        TensorLoader(samples(), 20), epochs=2, forward=with_weight_norm, accelerator="cpu",
    )  # fmt: skip
    NetworkSelfDistiller(chain, 0.5).fit(2)
    teacher = chain.teacher(("logits",))
    assert teacher is not None
    one = {name: value[:1] for name, value in samples().items()}
    torch.testing.assert_close(teacher(one)["logits"], teacher(samples())["logits"][:1])


# The experiments.


@pytest.mark.parametrize("name", ["toy", "diabetes"])
def test_exact_claims_decide_as_recorded(name: str) -> None:
    expected_to_fail = {
        "The README's second column is alpha = 0.25, as its head says",
        "No ratio of neighbouring diagonals of B ever falls, at alpha = 0.35",
    }
    for claim in EXPERIMENTS[name].claims:
        if isinstance(claim, Exact):
            assert (claim.check() > claim.tolerance) == (claim.text in expected_to_fail), claim.text


def test_wrong_labels_are_the_share_and_stay_out_of_the_test_samples() -> None:
    found = DigitsNoise("smoke").bench(3, 0.3)
    for given, clean in ((found.train, found.clean_train), (found.validation, found.clean_validation)):
        assert float((given.labels != clean.labels).double().mean()) == pytest.approx(0.3, abs=0.01)
    right = DigitsNoise("smoke").bench(4, 0.0)
    assert torch.equal(found.test.labels, right.test.labels)
    parts = [set(split.id.tolist()) for split in (found.train, found.validation, found.test)]
    assert not any(parts[a] & parts[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_shuffled_teacher_says_the_same_things_of_other_samples() -> None:
    experiment = DigitsNoise("smoke")
    found = experiment.bench(0, 0.3)
    network = found.plain()[0]
    batch = {"id": found.train.id, "input": found.train.input}
    said = benches.of_other_samples(found, [network])(batch, ["logits"])["logits"]
    own = network(found.train.input).detach()
    assert float((said == own).all(dim=-1).double().mean()) < 0.05
    torch.testing.assert_close(said.sort(dim=0).values, own.sort(dim=0).values)


def test_pictures_are_drawn_for_the_toy_and_the_sweep() -> None:
    outcome = EXPERIMENTS["toy"]("full").run("alpha-0.35", 0)
    assert len(outcome.pictures) == 2
    experiment = DigitsNoise("smoke")
    uri = next(iter(experiment.run("grid", 0).pictures.values()))
    assert b"alpha*" in base64.b64decode(uri.partition(",")[2])
    assert not experiment.run("grid", 1).pictures


def test_the_pages_snippets_run() -> None:
    page = Path(benches.__file__).with_name("README.md").read_text()
    snippets = page.split("```python\n")[1:]
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet.split("```")[0], {})
