from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, UserError
from limbeck.signals import SparseLogits, run_network
from limbeck.sources.live import Live
from limbeck.sources.stored import Table
from tests.sources.contract import check_source
from tests.sources.helpers import NEEDS, Network, batch


def test_the_contract_of_every_source() -> None:
    check_source(Live(Network(), taps={"middle": "middle"}), batch(), NEEDS)


def test_it_answers_as_the_network_does_in_eval_mode() -> None:
    model = Network().eval()
    expected = model(batch()["input"])
    signals = Live(model.train(), taps={"middle": "middle"})(batch(), NEEDS)
    torch.testing.assert_close(signals["logits"], expected)
    torch.testing.assert_close(signals["middle"], model.middle(batch()["input"]))


@pytest.mark.parametrize("part", ["", "norm", "norm.1"])
def test_it_goes_back_to_eval_mode_whatever_part_is_woken(part: str) -> None:
    model = Network()
    source = Live(model)
    expected = source(batch())["logits"]
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.get_submodule(part).train()
    assert torch.equal(source(batch())["logits"], expected)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())


def test_no_gradient_reaches_weights_or_input() -> None:
    model = Network()
    given = {**batch(), "input": batch()["input"].requires_grad_()}
    signals = Live(model, taps={"middle": "middle"})(given)
    assert not signals["logits"].requires_grad
    assert not signals["middle"].requires_grad
    # A loss must be able to save what it is given.
    student = torch.zeros(12, 5, requires_grad=True)
    (student * signals["logits"]).sum().backward()
    assert torch.equal(student.grad, signals["logits"])
    assert given["input"].grad is None
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_through_passes_the_gradient_to_the_input_and_none_to_the_weights() -> None:
    model = Network()
    given = {**batch(), "input": batch()["input"].requires_grad_()}
    source = Live(model, gradient="through", taps={"middle": "middle"})
    check_source(source, given, NEEDS, gradient=True)
    signals = source(given)
    (signals["logits"].sum() + signals["middle"].sum()).backward()
    expected = model.head.weight.sum(0) * model.norm[0].weight / (model.norm[0].running_var + 1e-5).sqrt() + 1
    torch.testing.assert_close(given["input"].grad, (expected @ model.middle.weight).expand(12, 6))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_answers_that_are_no_numbers_are_refused_with_the_samples(bad: float) -> None:
    def broken(model: nn.Module, given: Any) -> dict[str, Tensor]:
        embedding = torch.ones(len(given["id"]), 3)
        embedding[4, 1] = bad
        return {"embedding": embedding}

    with pytest.raises(LimbeckError, match=r"teacher signal embedding: .* 1 of 12 samples, first ids \[31\]"):
        Live(nn.Identity(), forward=broken)(batch())
    with pytest.raises(LimbeckError, match=r"1 of 12 rows, first rows \[4\]"):
        Live(nn.Identity(), forward=lambda m, b: broken(m, batch()))({"input": torch.ones(1)})
    masked = {**batch(), "mask": torch.arange(12) != 4}
    assert Live(nn.Identity(), forward=broken)(masked)["embedding"].shape == (12, 3)
    assert Live(nn.Identity(), forward=broken, check=False)(batch())["embedding"].shape == (12, 3)


def test_minus_infinity_is_a_logit_of_a_class_that_is_masked() -> None:
    def padded(model: nn.Module, given: Any) -> dict[str, Tensor]:
        return {"logits": torch.tensor([[0.0, -torch.inf]]).expand(12, 2)}

    assert torch.isneginf(Live(nn.Identity(), forward=padded)(batch())["logits"][:, 1]).all()


def test_a_huge_sum_of_finite_numbers_is_no_error() -> None:
    source = Live(nn.Identity(), forward=lambda m, b: {"logits": torch.full((12, 5), 3e38)})
    assert source(batch())["logits"].max() > 1e38


def test_sparse_answers_pass() -> None:
    def sparse(model: nn.Module, given: Any) -> dict[str, Any]:
        return {"logits": SparseLogits.from_dense(run_network(model, given)["logits"], 2)}

    signals = Live(Network(), forward=sparse)(batch(), ["logits"])
    assert not signals["logits"].values.is_inference()


def test_needs_choose_and_missing_ones_are_named() -> None:
    source = Live(Network(), taps={"middle": "middle"})
    assert set(source(batch(), ["middle"])) == {"middle"}
    assert set(source(batch())) == {"logits", "middle"}
    with pytest.raises(UserError, match="teacher signal: given midle; allowed: logits, middle"):
        source(batch(), ["midle"])


def test_the_fingerprint_knows_weights_taps_and_the_way_of_running() -> None:
    def other(model: nn.Module, given: Any) -> dict[str, Tensor]:
        return run_network(model, given)

    class Runner:
        def __call__(self, model: nn.Module, given: Any) -> dict[str, Tensor]:
            return run_network(model, given)

    sources = [
        Live(Network()),
        Live(Network(seed=1)),
        Live(Network(), taps={"middle": "middle"}),
        Live(Network(), taps={"middle": "head"}),
        Live(Network(), forward=other),
        Live(Network(), forward=functools.partial(other)),
        Live(Network(), forward=functools.partial(other, given=1)),
        Live(Network(), forward=Runner()),
    ]
    prints = [source.fingerprint() for source in sources]
    assert len(set(prints)) == len(prints)
    assert Live(Network().train()).fingerprint() == prints[0]
    assert Table(torch.arange(2), {"logits": torch.ones(2, 3)}).fingerprint() not in prints


def test_a_wrong_gradient_mode_is_refused() -> None:
    with pytest.raises(UserError, match="gradient: given some; allowed: none, through"):
        Live(Network(), gradient="some")


@pytest.mark.parametrize("gradient", ["none", "through"])
def test_an_early_stop_gives_the_same_signals_and_skips_later_layers(gradient: str) -> None:
    model = Network()
    heads: list[int] = []
    model.head.register_forward_pre_hook(lambda *_: heads.append(1))
    taps = {"middle": "middle"}
    whole, early = (Live(model, taps=taps, gradient=gradient, stop_early=stop) for stop in (False, True))
    expected = whole(batch(), ["middle"])
    assert heads == [1]
    found = early(batch(), ["middle"])
    assert heads == [1]
    assert set(found) == {"middle"}
    assert torch.equal(found["middle"], expected["middle"])
    assert early.fingerprint() == whole.fingerprint()
    # Outputs, or all there is, need the whole pass.
    assert set(early(batch(), ["middle", "logits"])) == {"middle", "logits"}
    assert set(early(batch())) == {"middle", "logits"}
    assert heads == [1] * 3
    check_source(Live(Network(), taps=taps, stop_early=True), batch(), NEEDS)


def test_a_network_that_fails_before_its_tap_says_so() -> None:
    def broken(model: nn.Module, given: Any) -> dict[str, Tensor]:
        raise ValueError("no such pixel")

    with pytest.raises(ValueError, match="no such pixel"):
        Live(Network(), taps={"middle": "middle"}, forward=broken, stop_early=True)(batch(), ["middle"])
