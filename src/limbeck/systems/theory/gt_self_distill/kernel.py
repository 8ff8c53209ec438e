"""Self-distillation of kernel ridge regression: step by step, directly, and in the limit.

With the Gram matrix K = V D V^T, ridge lambda and A = D / (D + lambda), generation tau is

    c_tau = (K + lambda I)^-1 [ alpha y + (1 - alpha) y^(tau-1) ],   f_tau(x) = k(x, X) c_tau,   y^(tau) = K c_tau,

the minimiser of sum_i [ alpha/2 (f(x_i) - y_i)^2 + (1 - alpha)/2 (f(x_i) - y_i^(tau-1))^2 ] + lambda/2 ||f||^2. In the
eigenbasis y^(tau) = V B_tau V^T y with the diagonal B_1 = A, B_tau = A ((1 - alpha) B_(tau-1) + alpha), which sums to

    B_tau = q^(tau-1) A + (1 - q^(tau-1)) B_inf,   q = (1 - alpha) A,   B_inf = alpha D / (alpha D + lambda):

every generation lies between the first fit and the limit, a ridge fit with lambda / alpha (zero for alpha = 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data

from limbeck.errors import UserError

from .method import OPTIMAL, Weight, optimal_alpha

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Generation:
    """One fit: its number (``inf`` for the limit), weight of the truth, coefficients c ``[n, C]`` and y^(tau) = K c."""

    number: float
    weight: Weight
    coefficients: Array
    fitted: Array


@dataclass(frozen=True)
class Sparsification:
    """What is left of every eigendirection of K.

    Attributes:
        eigenvalues: of K, falling, ``[n]``.
        diagonal: of B_1 ... B_T, ``[T, n]``; ``limit`` of B_inf, ``[n]``.
        ratios: of neighbours, B_k / B_(k+1), ``[T, n - 1]``: the weak directions shrink first. At alpha = 0 no ratio
            ever falls with tau. At a larger fixed alpha none falls below that of B_1, but it may pass its limit and
            come back. NaN where nothing was ever left.
        degrees_of_freedom: the trace of B_1 ... B_T, ``[T]``.
    """

    eigenvalues: Array
    diagonal: Array
    limit: Array
    ratios: Array
    degrees_of_freedom: Array


class KernelSelfDistiller(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Kernel ridge regression refitted to a mix of the truth and its own predictions; a scikit-learn regressor.

    Args:
        alpha: weight of the truth: a number, one for each generation after the first, or ``optimal`` (the closed form
            on validation samples, given to :meth:`fit`).
        ridge: lambda; 0 only where the Gram matrix is not singular.
        generations: fits in all, the plain first one included.
        kernel: a name or function of :func:`sklearn.metrics.pairwise.pairwise_kernels`, or ``precomputed``: X is then
            the Gram matrix, and k(x, X) to predict. It must be positive semidefinite.
        gamma, degree, coef0: of the kernel.

    There is no intercept: centre the targets. Columns of y (one-hot classes) are fitted side by side.
    """

    def __init__(
        self,
        alpha: float | Sequence[float] | str = 0.5,
        ridge: float = 1.0,
        generations: int = 5,
        kernel: Any = "rbf",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1.0,
    ) -> None:
        self.alpha, self.ridge, self.generations = alpha, ridge, generations
        self.kernel, self.gamma, self.degree, self.coef0 = kernel, gamma, degree, coef0

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None) -> KernelSelfDistiller:
        """Fit all generations; ``validation`` is (X, y) of samples that are not trained on, for ``optimal``."""
        if not (np.isfinite(self.ridge) and self.ridge >= 0):
            raise UserError("ridge", self.ridge, "a number from 0 up")
        if isinstance(self.alpha, str) and self.alpha == OPTIMAL and validation is None:
            raise UserError("validation", "nothing", "held-out samples: on training samples the best alpha is always 1")
        check_X_y(X, y, multi_output=True, dtype=np.float64)
        X, y = validate_data(self, X, y, multi_output=True, dtype=np.float64)
        self.X_fit_, self._flat = X, np.ndim(y) == 1
        self.target_: Array = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        self.gram_ = self._kernel(X)
        self._spectrum: tuple[Array, Array] | None = None
        self._held_out = None if validation is None else self._rows_and_target(*validation)
        self._factor = self._factorise(1.0)
        self.chain_: list[Generation] = []
        for _ in range(self.generations):
            self.step()
        return self

    def step(self, alpha: float | None = None) -> Generation:
        """Fit one more generation, with a weight of its own if ``alpha`` is given."""
        check_is_fitted(self, "gram_")
        if not self.chain_:
            weight, mixed = Weight(1.0, 1.0), self.target_
        else:
            newest = self.chain_[-1].fitted
            weight = self._weight(len(self.chain_)) if alpha is None else _checked(alpha)
            mixed = weight.alpha * self.target_ + (1 - weight.alpha) * newest
        coefficients = cho_solve(self._factor, mixed)
        self.chain_.append(Generation(len(self.chain_) + 1, weight, coefficients, self.gram_ @ coefficients))
        return self.chain_[-1]

    def direct(self, number: int, alpha: float | None = None) -> Generation:
        """Generation ``number`` of the chain with a fixed alpha, without the ones before it: O(n^2)."""
        if number < 1:
            raise UserError("number", number, "1 or more; 1 is the plain fit")
        weight = _checked(self._fixed(alpha))
        left = self._left(number - 1, weight.alpha) if number > 1 else None
        mixed = np.ones_like(self.spectrum[0]) if left is None else weight.alpha + (1 - weight.alpha) * left
        return self._in_eigenbasis(number, weight, mixed / (self.spectrum[0] + self.ridge))

    def limit(self, alpha: float | None = None) -> Generation:
        """The limit of infinitely many generations: a ridge fit with lambda / alpha; exactly zero for alpha = 0."""
        weight = _checked(self._fixed(alpha))
        if weight.alpha == 0:
            nothing = np.zeros_like(self.target_)
            return Generation(np.inf, weight, nothing, nothing)
        coefficients = cho_solve(self._factorise(weight.alpha), weight.alpha * self.target_)
        return Generation(np.inf, weight, coefficients, self.gram_ @ coefficients)

    def predict(self, X: Any, generation: Generation | int | None = None) -> Array:
        """Predictions of the newest generation, of the one with a number, or of what the methods above return."""
        check_is_fitted(self, "gram_")
        if isinstance(generation, int) and not 1 <= generation <= len(self.chain_):
            raise UserError("generation", generation, f"1 to {len(self.chain_)}")
        chosen = generation if isinstance(generation, Generation) else self.chain_[(generation or 0) - 1]
        predicted: Array = self._kernel(validate_data(self, X, reset=False, dtype=np.float64)) @ chosen.coefficients
        return predicted[:, 0] if self._flat else predicted

    def best_alpha(self, X: Any, y: Any) -> Weight:
        """alpha* of the next generation on samples that are not trained on."""
        return optimal_alpha(*self._candidates(*self._rows_and_target(X, y)))

    def sweep(self, X: Any, y: Any, alphas: Sequence[float]) -> Array:
        """Mean squared error on held-out samples of the next generation, for each of ``alphas``."""
        target, hard, soft = self._candidates(*self._rows_and_target(X, y))
        return np.array([np.mean((target - alpha * hard - (1 - alpha) * soft) ** 2) for alpha in alphas])

    def sparsification(self, generations: int | None = None, alpha: float | None = None) -> Sparsification:
        """The diagonal of B for generations 1 to ``generations`` (the fitted ones by default) at a fixed alpha."""
        fixed, falling = _checked(self._fixed(alpha)).alpha, slice(None, None, -1)
        count = generations or len(self.chain_)
        diagonal = np.stack([self._left(number, fixed)[falling] for number in range(1, count + 1)])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = diagonal[:, :-1] / diagonal[:, 1:]
        return Sparsification(
            self.spectrum[0][falling], diagonal, self._limit_left(fixed)[falling], ratios, diagonal.sum(axis=1)
        )

    @property
    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues of K, rising, and eigenvectors; computed when first needed."""
        check_is_fitted(self, "gram_")
        if self._spectrum is None:
            values, vectors = eigh(self.gram_)
            if values[0] < -1e-8 * max(values[-1], 1.0):
                raise UserError("kernel", f"one with the eigenvalue {values[0]:.3g}", "a positive semidefinite one")
            self._spectrum = values.clip(min=0.0), vectors
        return self._spectrum

    def _left(self, number: int, alpha: float) -> Array:
        """The diagonal of B_number."""
        values, _ = self.spectrum
        first = values / (values + self.ridge)
        passed = ((1 - alpha) * first) ** (number - 1)
        left: Array = passed * first + (1 - passed) * self._limit_left(alpha)
        return left

    def _limit_left(self, alpha: float) -> Array:
        values, _ = self.spectrum
        return alpha * values / (alpha * values + self.ridge) if alpha > 0 else np.zeros_like(values)

    def _in_eigenbasis(self, number: float, weight: Weight, factors: Array) -> Generation:
        values, vectors = self.spectrum
        turned = factors[:, None] * (vectors.T @ self.target_)
        return Generation(number, weight, vectors @ turned, vectors @ (values[:, None] * turned))

    def _factorise(self, alpha: float) -> tuple[Array, bool]:
        """Cholesky factor of alpha K + lambda I; no inverse, whose error grows with the square of the condition."""
        message = ("ridge", self.ridge, "a larger one", "the Gram matrix with this ridge is singular")
        if self.ridge == 0 and self.spectrum[0][0] <= len(self.gram_) * np.finfo(float).eps * self.spectrum[0][-1]:
            raise UserError(*message)
        try:
            factor: tuple[Array, bool] = cho_factor(
                alpha * self.gram_ + self.ridge * np.eye(len(self.gram_)), lower=True
            )
        except LinAlgError as error:
            raise UserError(*message) from error
        return factor

    def _kernel(self, X: Array) -> Array:
        if self.kernel == "precomputed":
            if X.shape[1] != len(self.X_fit_) or (X is self.X_fit_ and not np.allclose(X, X.T)):
                raise UserError("precomputed kernel", f"shape {X.shape}", "k(x, X), and symmetric to fit")
            return X
        given = {} if callable(self.kernel) else {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        rows: Array = pairwise_kernels(X, self.X_fit_, metric=self.kernel, filter_params=True, **given)
        return rows

    def _rows_and_target(self, X: Any, y: Any) -> tuple[Array, Array]:
        rows = self._kernel(check_array(X, dtype=np.float64))
        target = np.asarray(y, dtype=np.float64).reshape(len(rows), -1)
        if target.shape[1] != self.target_.shape[1]:
            raise UserError(
                "validation target", f"{target.shape[1]} columns", f"{self.target_.shape[1]}, as in training"
            )
        return rows, target

    def _candidates(self, rows: Array, target: Array) -> tuple[Array, Array, Array]:
        """Truth, and predictions of the fits to y and to the newest generation; at the start both are the plain fit."""
        newest = self.chain_[-1].fitted if self.chain_ else self.target_
        hard, soft = (rows @ cho_solve(self._factor, mixed) for mixed in (self.target_, newest))
        return target, hard, soft

    def _weight(self, done: int) -> Weight:
        if isinstance(self.alpha, str):
            if self._held_out is None or self.alpha != OPTIMAL:
                raise UserError("alpha", self.alpha, f"numbers from 0 to 1, or {OPTIMAL} with validation samples")
            return optimal_alpha(*self._candidates(*self._held_out))
        if np.ndim(self.alpha) == 0:
            return _checked(self.alpha)
        schedule: Any = self.alpha
        if done > len(schedule):
            raise UserError(
                "alpha", f"{len(schedule)} numbers", f"{done} or more, one for each generation after the first"
            )
        return _checked(schedule[done - 1])

    def _fixed(self, alpha: float | None) -> Any:
        if alpha is None and (isinstance(self.alpha, str) or np.ndim(self.alpha)):
            raise UserError("alpha", self.alpha, "one number, given here: the closed forms hold for a fixed alpha")
        return self.alpha if alpha is None else alpha


def _checked(alpha: Any) -> Weight:
    if not 0 <= alpha <= 1:
        raise UserError("alpha", alpha, "0 to 1, the weight of the truth")
    return Weight(float(alpha), float(alpha))
