"""Anomaly maps: zero for a perfect student, blind to lengths, deep levels stressed, the filter scipy's."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from limbeck.errors import UserError
from limbeck.nn.anomaly_map import AnomalyMap, image_scores, smooth

GENERATOR = torch.Generator().manual_seed(0)
TEACHER = {
    "fine": torch.randn(3, 5, 16, 16, generator=GENERATOR),
    "deep": torch.randn(3, 7, 4, 4, generator=GENERATOR),
}
STUDENT = {name: torch.randn(maps.shape, generator=GENERATOR) for name, maps in TEACHER.items()}
SIZE = (32, 32)


def test_it_is_zero_where_the_student_equals_the_teacher() -> None:
    assert float(AnomalyMap(SIZE)(TEACHER, TEACHER).abs().max()) == 0.0


def test_lengths_do_not_count() -> None:
    score = AnomalyMap(SIZE)
    torch.testing.assert_close(
        score(STUDENT, {name: 3 * maps for name, maps in TEACHER.items()}), score(STUDENT, TEACHER)
    )


def test_a_level_of_a_quarter_of_the_side_counts_sixteen_times() -> None:
    score = AnomalyMap(SIZE, sigma=0)
    opposite = {name: {**TEACHER, name: -TEACHER[name]} for name in TEACHER}
    fine, deep = (score(opposite[name], TEACHER) for name in ("fine", "deep"))
    torch.testing.assert_close(deep, 16 * fine)
    uniform = AnomalyMap(SIZE, sigma=0, weights="uniform")
    torch.testing.assert_close(uniform(opposite["deep"], TEACHER), uniform(opposite["fine"], TEACHER))


def test_weights_by_name() -> None:
    only = AnomalyMap(SIZE, weights={"fine": 0.0, "deep": 2.0}, sigma=0)
    alone = AnomalyMap(SIZE, weights="uniform", sigma=0)({"deep": STUDENT["deep"]}, {"deep": TEACHER["deep"]})
    torch.testing.assert_close(only(STUDENT, TEACHER), 2 * alone)


def test_constant_maps_have_finite_scores() -> None:
    flat = {name: torch.zeros_like(maps) for name, maps in TEACHER.items()}
    assert torch.isfinite(AnomalyMap(SIZE)(STUDENT, flat)).all()
    assert float(AnomalyMap(SIZE)(flat, flat).abs().max()) == 0.0


def test_an_image_alone_has_the_map_that_it_has_among_others() -> None:
    score = AnomalyMap(SIZE)
    alone = score({n: m[:1] for n, m in STUDENT.items()}, {n: m[:1] for n, m in TEACHER.items()})
    torch.testing.assert_close(alone, score(STUDENT, TEACHER)[:1])
    assert alone.shape == (1, *SIZE)


@pytest.mark.parametrize(("shape", "sigma"), [((20, 33), 2.0), ((6, 9), 4.0)])
def test_the_filter_is_scipys_in_two_dimensions(shape: tuple[int, int], sigma: float) -> None:
    maps = torch.rand(2, *shape, dtype=torch.float64)
    expected = torch.stack([torch.from_numpy(gaussian_filter(one.numpy(), sigma)) for one in maps])
    torch.testing.assert_close(smooth(maps, sigma), expected)


def test_the_score_is_the_maximum() -> None:
    assert torch.equal(image_scores(torch.tensor([[[1.0, 4.0], [2.0, 0.0]]])), torch.tensor([4.0]))


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UserError, match="weights"):
        AnomalyMap(SIZE, weights="deep")
    with pytest.raises(UserError, match="fine"):
        AnomalyMap(SIZE, weights={"deep": 1.0})(STUDENT, TEACHER)
    with pytest.raises(UserError, match="levels"):
        AnomalyMap(SIZE)({"deep": STUDENT["deep"]}, TEACHER)
