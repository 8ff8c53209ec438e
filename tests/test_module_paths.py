from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from limbeck.errors import UserError
from limbeck.module_paths import blocks, modules_by_path, paths_of
from limbeck.taps import Taps
from tests.networks import CASES, bert, call, gpt2, plain, resnet


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "resnet"])
def test_every_network_has_its_roles(name: str) -> None:
    build, given, *_, last, embedding = CASES[name]
    model = build()
    taps = Taps(model, {"block": "every_block", "last": "last_stage", "first": "embedding_layer"})
    with taps.capture() as signals:
        call(model, given)
    numbered = [key for key in signals if key.startswith("block.")]
    assert torch.equal(signals["last"], signals[numbered[-1]])
    if last:
        assert taps.where["last"].path == last
        assert taps.where["first"].path == embedding
        assert len(numbered) == 3


def test_blocks_of_stages_side_by_side_are_all_blocks() -> None:
    taps = Taps(resnet(), {"block": "every_block", "last": "last_stage"})
    assert [tap.path for tap in taps.where.values()] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0", "layer4.0"]

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(9, 9) for _ in range(2))})
            self.text = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))})

    paths = [tap.path for tap in Taps(Towers(), {"block": "every_block"}).where.values()]
    assert paths == ["image.layers.0", "image.layers.1"]


def test_the_head_is_the_last_linear_layer() -> None:
    assert Taps(gpt2(), {"head": "head"}).where["head"].path == "lm_head"
    assert Taps(plain(), {"head": "head"}).where["head"].path == "4"


def test_the_outermost_of_nested_stacks_is_the_stack_of_blocks() -> None:
    path, stack = blocks(bert())
    assert path == "encoder.layer"
    assert len(stack) == 3
    with pytest.raises(UserError, match="every_block; allowed: a network with a stack of like blocks"):
        blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("path", ["encoder.layer.3", "encoder.layers.1", "enc.*.dense", "last_stag"])
def test_a_path_that_matches_nothing_lists_the_near_names(path: str) -> None:
    with pytest.raises(UserError) as caught:
        Taps(bert(), {"mid": path})
    assert str(caught.value).startswith(f"tap mid: given {path}; allowed: ")
    near = "last_stage" if path.startswith("last") else "encoder"
    assert near in str(caught.value)


@pytest.mark.parametrize("path", ["encoder.layer.1:outputs", "encoder.layer.1:input:output"])
def test_a_wrong_mark_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="PATH:input or PATH:output"):
        Taps(bert(), {"mid": path})


def test_a_container_that_is_never_called_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="given encoder.layer; allowed: a module that is called; a ModuleList"):
        Taps(bert(), {"mid": "encoder.layer"})


def test_a_module_used_twice_has_two_paths() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert set(paths_of(model)) == {"0", "1", "2"}
    taps = Taps(model, {"last": "2"})
    with taps.capture() as signals:
        out = model(torch.ones(1, 4))
    assert torch.equal(signals["last"], out)


def test_wrappers_do_not_show_in_paths() -> None:
    model = plain()
    model[2] = torch.compile(model[2], backend="eager")
    wrapped = DataParallel(torch.compile(model, backend="eager"))
    assert set(modules_by_path(wrapped)) == {"", "0", "1", "2", "3", "4"}
    with Taps(wrapped, {"mid": "2"}).capture() as signals:
        pass
    assert signals == {}
