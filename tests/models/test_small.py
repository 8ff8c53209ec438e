from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.small import (
    MLP,
    SMALL_CNNS,
    BagOfEmbeddings,
    ResNetCIFAR,
    SmallCNN,
    TinyTransformer,
    small_cnn,
)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL_CNNS)
def test_small_cnns_have_about_the_parameters_of_their_name(name: str) -> None:
    assert size(small_cnn(name)) == pytest.approx(int(name[:-1]) * 1000, rel=0.1)
    assert small_cnn(name, classes=80, in_channels=3, size=32)(torch.rand(2, 3, 32, 32)).shape == (2, 80)


@pytest.mark.parametrize(("depth", "width", "parameters"), [(20, 16, 0.27e6), (56, 16, 0.86e6), (8, 8, 20e3)])
def test_resnets_have_the_parameters_of_the_paper(depth: int, width: int, parameters: float) -> None:
    model = ResNetCIFAR(depth, width)
    assert size(model) == pytest.approx(parameters, rel=0.03)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len([m for m in layers if m.weight.shape[2:] != (1, 1)]) == depth


def test_stages_halve_the_maps() -> None:
    maps: dict[str, tuple[int, ...]] = {}
    model = ResNetCIFAR(8, 8)
    for name in ("stem", "stage1", "stage2", "stage3", "pool"):
        model.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: maps.update({name: tuple(out.shape[1:])})
        )
    model(torch.rand(1, 3, 32, 32))
    assert maps == {
        "stem": (8, 32, 32),
        "stage1": (8, 32, 32),
        "stage2": (16, 16, 16),
        "stage3": (32, 8, 8),
        "pool": (32,),
    }


@pytest.mark.parametrize("model", [MLP(12, (8, 4), 3), MLP(12, (), 3), SmallCNN((4,), 3, 1, 2)])
def test_logits_depend_on_the_input(model: nn.Module) -> None:
    shape = (5, 12) if isinstance(model, MLP) else (5, 1, 3, 4)
    logits = model.eval()(torch.randn(shape))
    assert logits.shape == (5, 3)
    assert logits.std(0).min() > 0


@pytest.mark.parametrize("build", [BagOfEmbeddings, TinyTransformer])
def test_padding_never_changes_a_text(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build(50, classes=3).eval()
    ids = torch.randint(50, (2, 6))
    padded = torch.cat([ids, torch.full((2, 3), 7)], dim=1)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, 3)], dim=1).long()
    torch.testing.assert_close(model(padded, mask), model(ids, torch.ones_like(ids)))
    assert not torch.allclose(model(padded), model(ids))


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: ResNetCIFAR(19), "depth"),
        (lambda: small_cnn("5k"), "small_cnn"),
        (lambda: SmallCNN((4, 4, 4, 4), size=7), "channels"),
        (lambda: SmallCNN((), size=8), "channels"),
        (lambda: TinyTransformer(10, width=6, heads=4), "heads"),
        (lambda: TinyTransformer(10, max_length=2)(torch.zeros(1, 3, dtype=torch.int64)), "max_length"),
    ],
)
def test_impossible_settings_name_their_key(build: object, key: str) -> None:
    with pytest.raises(UserError, match=key):
        build()  # type: ignore[operator]
