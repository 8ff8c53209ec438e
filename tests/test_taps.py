from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from limbeck.errors import UserError
from limbeck.taps import Taps, blocks, edit, modules_by_path, paths_of, swap


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 30}
    return BertModel(BertConfig(num_hidden_layers=3, max_position_embeddings=16, **sizes)).eval()


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return ViTModel(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_hidden_layers=3, **sizes)).eval()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=30, n_positions=16)).eval()


def resnet() -> nn.Module:
    from limbeck.models.timm import import_timm

    torch.manual_seed(0)
    return import_timm().create_model("resnet10t", num_classes=5, in_chans=1).eval()


class UNet(nn.Module):
    """Stages named as those of diffusers: blocks of resnets and samplers, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(1, 4, 3, padding=1)
        self.down_blocks = nn.ModuleList([self.block(4, 8), self.block(8, 8)])
        self.mid_block = self.block(8, 8)
        self.up_blocks = nn.ModuleList([self.block(8, 8), self.block(8, 4)])
        self.conv_out = nn.Conv2d(4, 1, 3, padding=1)

    @staticmethod
    def block(channels: int, out: int) -> nn.Module:
        return nn.ModuleDict({"resnets": nn.ModuleList([nn.Conv2d(channels, out, 1), nn.Conv2d(out, out, 1)])})

    def forward(self, sample: Tensor) -> dict[str, Tensor]:
        x = self.conv_in(sample)
        for block in [*self.down_blocks, self.mid_block, *self.up_blocks]:
            for layer in block["resnets"]:
                x = layer(x)
        return {"sample": self.conv_out(x)}


IMAGE = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = {"input_ids": torch.arange(10).view(2, 5)}
CASES: dict[str, tuple[Callable[[], nn.Module], Any, str, list[int], str, str, str]] = {
    # network, input, a tap, its shape, a block's pattern, the last stage, the embedding layer
    "plain": (plain, torch.ones(2, 4), "2", [2, 6], "*", "", ""),
    "bert": (bert, TOKENS, "encoder.layer.1", [2, 5, 8], "encoder.layer.*", "encoder.layer.2",
             "embeddings.word_embeddings"),
    "vit": (vit, IMAGE[:, :, :8, :8], "embeddings.patch_embeddings.projection", [2, 8, 2, 2], "", "", ""),
    "gpt2": (gpt2, TOKENS, "transformer.h.0.mlp", [2, 5, 8], "transformer.h.*", "transformer.h.2", "transformer.wte"),
    "resnet": (resnet, IMAGE, "layer2.0.conv1", [2, 128, 4, 4], "layer?", "", ""),
    "unet": (UNet, IMAGE, "mid_block.resnets.1", [2, 8, 32, 32], "", "", "conv_in"),
}  # fmt: skip


def call(model: nn.Module, given: Any) -> Any:
    return model(**given) if isinstance(given, dict) else model(given)


@pytest.mark.parametrize("name", CASES)
def test_a_path_reads_what_the_module_returns(name: str) -> None:
    build, given, path, shape, *_ = CASES[name]
    model = build()
    heard: list[Tensor] = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, a, out: heard.append(out if isinstance(out, Tensor) else out[0]))
    taps = Taps(model, {"mid": path})
    with taps.capture() as signals:
        call(model, given)
    handle.remove()
    assert list(signals) == ["mid"]
    assert list(signals["mid"].shape) == shape
    assert torch.equal(signals["mid"], heard[0])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[4]])
def test_a_pattern_gives_numbered_signals_in_order(name: str) -> None:
    build, given, _, _, pattern, *_ = CASES[name]
    model = build()
    taps = Taps(model, {"block": pattern})
    with taps.capture() as signals:
        call(model, given)
    assert list(signals) == [f"block.{index}" for index in range(len(signals))]
    assert len(signals) >= 3
    assert len({tensor.data_ptr() for tensor in signals.values()}) > 1


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


def test_input_reads_what_goes_in_also_by_keyword_and_before_it_is_overwritten() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    taps = Taps(model, {"before": "1:input:copy", "after": "1"})
    with taps.capture() as signals:
        out = model(torch.randn(8, 4))
    assert (signals["before"] < 0).any()
    assert torch.equal(signals["after"], out)
    assert torch.equal(signals["before"].relu(), out)

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    given = torch.randn(2, 4)
    with Taps(by_keyword := ByKeyword(), {"x": "inner:input"}).capture() as signals:
        pass
    assert not signals
    taps = Taps(by_keyword, {"x": "inner:input"})
    with taps.capture() as signals:
        by_keyword(given)
    assert torch.equal(signals["x"], given)


@pytest.mark.parametrize("kind", ["inplace activation", "residual sum"])
def test_a_tensor_that_a_later_layer_writes_into_is_noticed(kind: str) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            if kind == "residual sum":
                y += x
                return y
            return nn.functional.relu(y, inplace=True)

    model, given = Residual(), torch.randn(8, 4)
    expected = copy.deepcopy(model.norm)(given)
    with pytest.raises(UserError, match="tap mid: given norm.*norm:copy"), Taps(model, {"mid": "norm"}).capture():
        model(given)
    for path, context in (("norm:copy", torch.enable_grad()), ("norm", torch.inference_mode())):
        model, taps = Residual(), None
        taps = Taps(model, {"mid": path})
        with context, taps.capture() as signals:
            model(given)
        torch.testing.assert_close(signals["mid"], expected)
        assert not signals["mid"].is_inference()


def test_the_gradient_flows_through_a_tap() -> None:
    model = plain()
    taps = Taps(model, {"mid": "2"})
    with taps.capture() as signals:
        model(torch.randn(3, 4))
    signals["mid"].sum().backward()
    assert model[0].weight.grad is not None
    assert model[4].weight.grad is None


def test_the_gradient_flows_through_a_tap_of_a_checkpointed_block() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = bert().train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        taps = Taps(model, {"mid": "encoder.layer.1.output.dense"})
        with taps.capture() as signals:
            model(**TOKENS)
        signals["mid"].square().sum().backward()
        gradients.append(model.encoder.layer[0].output.dense.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_fused_path_of_an_encoder_layer_does_not_bypass_a_tap() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    taps = Taps(model, {"hidden": "layers.1.linear1", "block": "every_block"})
    with torch.inference_mode(), taps.capture() as signals:
        model(torch.randn(2, 5, 8))
    assert set(signals) == {"hidden", "block.0", "block.1"}


def test_captured_tensors_live_as_long_as_the_caller_wants() -> None:
    model = plain()
    taps = Taps(model, {"mid": "2"})
    with taps.capture() as signals:
        model(torch.randn(3, 4))
    ref = weakref.ref(signals["mid"])
    del signals
    gc.collect()
    assert ref() is None
    model(torch.randn(3, 4))
    assert taps._store.signals is None


def test_captures_nest_and_end_on_an_error() -> None:
    model = plain()
    taps = Taps(model, {"mid": "2"})
    with taps.capture() as outer:
        model(torch.zeros(1, 4))
        first = outer["mid"]
        with taps.capture() as inner:
            model(torch.ones(1, 4))
        assert outer["mid"] is first
        assert not torch.equal(inner["mid"], first)
    with pytest.raises(RuntimeError), taps.capture():
        model(torch.zeros(1, 5))
    assert taps._store.signals is None


def test_close_and_the_garbage_collector_remove_the_hooks() -> None:
    model = plain()
    taps = Taps(model, {"mid": "2"})
    assert hooks(model) == 1
    taps.close()
    assert hooks(model) == 0
    taps = Taps(model, {"mid": "2", "in": "0:input"})
    del taps
    gc.collect()
    assert hooks(model) == 0


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_copies_of_the_network_do_not_write() -> None:
    model = plain()
    taps = Taps(model, {"mid": "2", "given": "4:input"})
    twin, reloaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with taps.capture() as signals:
        twin(torch.ones(1, 4))
        reloaded(torch.ones(1, 4))
        assert not signals
        model(torch.ones(1, 4))
    assert set(signals) == {"mid", "given"}


def test_a_copy_of_network_and_taps_has_taps_of_its_own() -> None:
    model = plain()
    both = {"model": model, "taps": Taps(model, {"mid": "2"})}
    twin = copy.deepcopy(both)
    with twin["taps"].capture() as signals, both["taps"].capture() as mine:
        twin["model"](torch.ones(1, 4))
    assert set(signals) == {"mid"}
    assert not mine


def test_a_module_used_twice_has_two_paths() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert set(paths_of(model)) == {"0", "1", "2"}
    taps = Taps(model, {"last": "2"})
    with taps.capture() as signals:
        out = model(torch.ones(1, 4))
    assert torch.equal(signals["last"], out)


@pytest.mark.parametrize("order", ["taps first", "compiled first", "compiled and run first", "in place"])
def test_taps_work_under_compile(order: str) -> None:
    model, given = plain(), torch.randn(3, 4)
    if order == "taps first":
        taps = Taps(model, {"mid": "2"})
    runner = model if order == "in place" else torch.compile(model, backend="eager", fullgraph=True)
    if order == "in place":
        model.compile(backend="eager")
    if order == "compiled and run first":
        runner(given)
    if order != "taps first":
        taps = Taps(runner if order == "compiled first" else model, {"mid": "2"})
    expected = plain()[:3](given)
    for _ in range(2):
        with taps.capture() as signals:
            runner(given)
        torch.testing.assert_close(signals["mid"], expected)
        assert signals["mid"].requires_grad
    runner(given)
    assert taps._store.signals is None


def test_wrappers_do_not_show_in_paths() -> None:
    model = plain()
    model[2] = torch.compile(model[2], backend="eager")
    wrapped = DataParallel(torch.compile(model, backend="eager"))
    assert set(modules_by_path(wrapped)) == {"", "0", "1", "2", "3", "4"}
    with Taps(wrapped, {"mid": "2"}).capture() as signals:
        pass
    assert signals == {}


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


def test_edit_changes_outputs_and_inputs_inside_only() -> None:
    model, given = plain(), torch.randn(3, 4)
    before = model(given)
    with edit(model, {"2": lambda h: h * 0}):
        assert torch.equal(model(given), model[4].bias.expand(3, 3))
    with edit(model, {"4:input": lambda h: h * 0}):
        assert torch.equal(model(given), model[4].bias.expand(3, 3))
        assert hooks(copy.deepcopy(model)) == 1
        twin = copy.deepcopy(model)
    assert torch.equal(model(given), before)
    assert torch.equal(twin(given), before)
    assert hooks(model) == 0


def test_edit_keeps_what_surrounds_the_tensor() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    one, two = torch.ones(2), torch.full((2,), 2.0)
    with edit(chain := Chain(), {"first": lambda x: x * 10}):
        assert [float(item[0]) for item in chain((one, two))] == [10.0, 2.0]
        assert chain((None, two))[0] is None
        output = chain(BaseModelOutput(last_hidden_state=one, hidden_states=(two,)))
        assert isinstance(output, BaseModelOutput)
        assert float(output.last_hidden_state[0]) == 10.0
        assert output.hidden_states == (two,)
        assert set(chain({"a": one, "b": two})) == {"a", "b"}
    assert torch.equal(one, torch.ones(2))


def test_edit_is_undone_after_an_error() -> None:
    model = plain()

    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), edit(model, {"2": broken}):
        model(torch.ones(1, 4))
    assert hooks(model) == 0
    with pytest.raises(UserError, match="near|allowed"), edit(model, {"2": broken, "nowhere": broken}):
        pass
    assert hooks(model) == 0


def test_edit_reaches_compiled_code_and_leaves_it_again() -> None:
    model, given = plain(), torch.randn(3, 4)
    compiled = torch.compile(model, backend="eager")
    before = compiled(given)
    with edit(model, {"2": lambda h: h * 0}):
        assert torch.equal(compiled(given), model[4].bias.expand(3, 3))
    assert torch.equal(compiled(given), before)


def test_swap_puts_a_part_in_and_gives_the_old_one_back() -> None:
    model = bert()
    new = copy.deepcopy(model.encoder.layer[1])
    old = swap(model, "encoder.layer.1", new, example=TOKENS)
    assert model.encoder.layer[1] is new
    assert swap(model, "encoder.layer.1", old) is new
    sequential = plain()
    swap(sequential, "2", nn.Linear(6, 6), example=torch.ones(2, 4))
    assert sequential(torch.ones(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("new", [nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 6).double(), nn.LazyLinear(5)])
def test_swap_refuses_a_misfit_and_changes_nothing(new: nn.Module) -> None:
    model = plain().train()
    model[1].eval()
    old = model[2]
    with pytest.raises(UserError, match=r"2: given a module that .*; allowed: one that returns \[2, 6\] torch.float32"):
        swap(model, "2", new, example=torch.ones(2, 4))
    assert model[2] is old
    assert new.training
    assert model.training
    assert not model[1].training
    assert hooks(model) == 0


def test_swap_names_both_shapes_and_wrong_paths() -> None:
    model = plain()
    with pytest.raises(UserError, match=r"given a module that returns \[2, 5\].*\[2, 6\]"):
        swap(model, "2", nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5)), example=torch.ones(2, 4))
    with pytest.raises(UserError, match="path: given 9"):
        swap(model, "9", nn.Identity())
    model.unused = nn.Linear(2, 2)
    unused = nn.Module()
    unused.net, unused.spare = plain(), nn.Linear(2, 2)
    unused.forward = lambda x: unused.net(x)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="a module that the network calls"):
        swap(unused, "spare", nn.Linear(2, 2), example=torch.ones(2, 4))


def run_until(model: nn.Module, taps: Taps, names: tuple[str, ...], inputs: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The signals of an early stop, and the paths of the modules that ran."""
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
        for path, module in modules_by_path(model).items()
        if path
    ]
    with taps.capture(until=names) as signals:
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
        ran.append("the end")
    for handle in handles:
        handle.remove()
    return signals, ran


def test_an_early_stop_skips_later_layers_and_reads_the_same() -> None:
    model, inputs = plain(), torch.randn(5, 4)
    taps = Taps(model, {"a": "0", "b": "2"})
    with taps.capture() as whole:
        model(inputs)
    signals, ran = run_until(model, taps, ("b",), inputs)
    assert ran == ["0", "1", "2"]
    assert all(torch.equal(signals[name], whole[name]) for name in ("a", "b"))
    signals, ran = run_until(model, taps, ("a",), inputs)
    assert ran == ["0"]
    assert set(signals) == {"a"}
    # Both are waited for, in whatever order they are named.
    assert run_until(model, taps, ("b", "a"), inputs)[1] == ["0", "1", "2"]
    # Outside, and without names, the network runs to its end.
    assert run_until(model, taps, (), inputs)[1][-1] == "the end"
    assert model(inputs).shape == (5, 3)
    with pytest.raises(UserError, match="until: given c; allowed: a, b"), taps.capture(until=("c",)):
        pass


@pytest.mark.parametrize("build", [bert, vit, gpt2])
def test_an_early_stop_passes_through_the_wrappers_of_transformers(build: Callable[[], nn.Module]) -> None:
    model = build()
    inputs = (
        {"pixel_values": torch.randn(2, 1, 8, 8)}
        if "ViT" in type(model).__name__
        else {"input_ids": torch.ones(2, 5).long()}
    )
    taps = Taps(model, {"block": "every_block"})
    with taps.capture() as whole, torch.no_grad():
        before = model(**inputs)
    signals, ran = run_until(model, taps, ("block.1",), inputs)
    assert set(signals) == {"block.0", "block.1"}
    assert torch.equal(signals["block.1"], whole["block.1"])
    assert not any(path.startswith(taps.where["block.2"].path) for path in ran)
    # Nothing is left behind by the pass that was cut.
    again = model(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(before.to_tuple(), again.to_tuple()) if isinstance(a, Tensor))


def test_an_early_stop_ends_the_capture_that_asked_for_it() -> None:
    model, inputs = plain(), torch.randn(5, 4)
    outer, inner = Taps(model, {"end": "4"}), Taps(model, {"mid": "2"})
    with outer.capture() as around:
        with inner.capture(until=("mid",)) as signals:
            model(inputs)
        assert set(signals) == {"mid"}
        model(inputs)
    assert set(around) == {"end"}
    # The other way round the outer stop passes through the inner capture.
    with inner.capture(until=("mid",)) as around:
        with outer.capture():
            model(inputs)
        raise AssertionError("the block was to end")
    assert set(around) == {"mid"}


def test_the_gradient_flows_through_an_early_stop() -> None:
    model, inputs = plain(), torch.randn(5, 4)
    with Taps(model, {"mid": "2"}).capture(until=("mid",)) as signals:
        model(inputs)
    signals["mid"].sum().backward()
    assert model[0].weight.grad is not None
    assert model[4].weight.grad is None


def test_compiled_code_reads_the_same_and_runs_to_its_end() -> None:
    model, inputs = plain(), torch.randn(5, 4)
    taps = Taps(model, {"mid": "2"})
    with taps.capture() as whole:
        model(inputs)
    compiled = torch.compile(model, backend="eager")
    with taps.capture(until=("mid",)) as signals:
        compiled(inputs)
    torch.testing.assert_close(signals["mid"], whole["mid"])
