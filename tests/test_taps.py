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

from limbeck.errors import UserError
from limbeck.taps import Taps, edit, modules_by_path, swap
from tests.networks import CASES, TOKENS, bert, call, gpt2, plain, vit


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
