"""The reverse student mirrors any taps, and its links leak nothing to their own level."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from limbeck.errors import UserError
from limbeck.nn.reverse_decoder import ReverseStudent, TapEncoder

SMALL = {"t0": (6, 16, 16), "t1": (4, 16, 16), "t2": (8, 8, 8), "t3": (12, 4, 4)}
RESNET34 = {"t0": (64, 64, 64), "t1": (64, 64, 64), "t2": (128, 32, 32), "t3": (256, 16, 16)}


def taps(shapes: Mapping[str, tuple[int, ...]] = SMALL, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("options", [{}, {"links": False}, {"attention": False}, {"fusion": "concat"}, {"blocks": 1}])
def test_it_gives_maps_of_the_taps_shapes(options: dict[str, object]) -> None:
    made = ReverseStudent(SMALL, **options)(taps())  # type: ignore[arg-type]
    assert {name: tuple(maps.shape[1:]) for name, maps in made.items()} == SMALL


def test_the_published_sizes() -> None:
    student = ReverseStudent(RESNET34).eval()
    inside: list[tuple[int, ...]] = []
    student.bottleneck.register_forward_hook(lambda module, given, out: inside.append(tuple(out.shape[1:])))
    widths = [[part[0].out_channels for part in path] for path in student.fusion.paths]  # type: ignore[union-attr, index]
    with torch.no_grad():
        made = student(**taps(RESNET34, 1))
    assert widths == [[128, 256], [128, 256], [256], [256]]
    assert inside == [(512, 8, 8)]
    assert {name: tuple(maps.shape[1:]) for name, maps in made.items()} == RESNET34


def test_a_small_grid_keeps_cells_for_the_bottleneck() -> None:
    student, inside = ReverseStudent(SMALL), list[torch.Size]()
    student.bottleneck.register_forward_hook(lambda module, given, out: inside.append(out.shape[-2:]))
    student(taps())
    assert inside == [(4, 4)]


def test_taps_may_skip_a_grid() -> None:
    shapes = {"a": (4, 32, 32), "b": (8, 8, 8)}
    assert {n: tuple(m.shape[1:]) for n, m in ReverseStudent(shapes, smallest=2)(taps(shapes)).items()} == shapes


def test_links_bring_a_shallower_map_to_the_next_deeper_level_only() -> None:
    torch.manual_seed(0)
    student = ReverseStudent(SMALL).eval()
    # Without the bottleneck's path what is left of a tap in the output has come by a link.
    student.bottleneck.register_forward_hook(lambda module, given, out: out.detach() * 0)
    reached: dict[str, set[str]] = {}
    given = {name: maps.requires_grad_() for name, maps in taps().items()}
    for name, made in student(given).items():
        gradients = torch.autograd.grad(made.sum(), list(given.values()), retain_graph=True, allow_unused=True)
        reached[name] = {tap for tap, g in zip(given, gradients, strict=True) if g is not None and g.abs().sum() > 0}
    # Deeper levels hand on what they were given: t3 gets t2 alone, and no level its own tap by a link of its own.
    assert reached["t3"] == {"t2"}
    assert reached["t2"] == {"t2", "t1"}
    assert student.links is not None
    assert [link.cells for link in student.links] == [1, 2, 2]


def test_signed_levels_may_be_negative_and_others_are_not() -> None:
    torch.manual_seed(0)
    plain = ReverseStudent(SMALL, links=False)(taps())
    signed = ReverseStudent(SMALL, links=False, signed=True)(taps())
    assert all(float(maps.detach().min()) >= 0 for maps in plain.values())
    assert all(float(maps.detach().min()) < 0 for maps in signed.values())


def test_what_cannot_be_mirrored_is_refused() -> None:
    with pytest.raises(UserError, match="half"):
        ReverseStudent({"a": (4, 12, 12), "b": (8, 8, 8)})
    with pytest.raises(UserError, match="two or more"):
        ReverseStudent({"a": (4, 12, 12)})
    with pytest.raises(UserError, match="fusion"):
        ReverseStudent(SMALL, fusion="product")
    with pytest.raises(UserError, match="t3"):
        ReverseStudent(SMALL)({"t0": torch.zeros(1, 6, 16, 16)})


def test_an_encoder_gives_the_same_shapes_from_the_image() -> None:
    made = TapEncoder(SMALL, (64, 64), signed=True)(torch.randn(2, 3, 64, 64))
    assert {name: tuple(maps.shape[1:]) for name, maps in made.items()} == SMALL
