from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.signals import SparseLogits, batch_length, dense, detach, move, name_output, pick, run_network


class Keyed(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> OrderedDict:
        return OrderedDict(logits=a + b, embedding=a, note="not a tensor", hidden_states=(a, b))


def test_a_tensor_input_is_passed_as_it_is_and_named_logits() -> None:
    signals = run_network(nn.Identity(), {"input": torch.ones(2, 3)})
    assert list(signals) == ["logits"]
    assert torch.equal(signals["logits"], torch.ones(2, 3))


def test_a_mapping_is_passed_as_keywords_and_keeps_its_tensors() -> None:
    given = {"a": torch.ones(2), "b": torch.full((2,), 2.0)}
    signals = run_network(Keyed(), {"input": given})
    assert list(signals) == ["logits", "embedding"]
    assert torch.equal(signals["logits"], torch.full((2,), 3.0))


def test_of_a_tuple_the_first_tensor_counts() -> None:
    assert list(name_output((torch.ones(1), torch.zeros(1)))) == ["logits"]
    with pytest.raises(UserError, match="network output: given str.*forward="):
        name_output("text")


@pytest.mark.parametrize("batch", [(torch.ones(2, 3), torch.ones(2)), {"image": torch.ones(2, 3)}, torch.ones(2)])
def test_a_batch_that_is_no_mapping_with_input_is_refused(batch: object) -> None:
    with pytest.raises(UserError, match="batch: given .*allowed: a mapping with input"):
        run_network(nn.Identity(), batch)  # type: ignore[arg-type]


def test_a_missing_signal_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="teacher signal: given embeding; allowed: embedding"):
        pick({"embedding": torch.ones(1), "logits": torch.ones(1)}, ["embeding"], "teacher")


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_logits_are_an_exact_distribution(k: int, dtype: torch.dtype) -> None:
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype) * 20
    sparse = SparseLogits.from_dense(logits, k)
    assert sparse.values.dtype == dtype
    whole = sparse.values.double().exp().sum(-1) + sparse.rest.double().exp()
    torch.testing.assert_close(whole, torch.ones(4, 5, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    log_probs = logits.double().log_softmax(-1)
    kept = log_probs.gather(-1, sparse.indices)
    torch.testing.assert_close(sparse.values.double(), kept, rtol=1e-5, atol=1e-5)
    others = log_probs.scatter(-1, sparse.indices, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(sparse.rest.double(), others, rtol=1e-5, atol=1e-5)
    dense_again = sparse.to_dense()
    torch.testing.assert_close(dense_again.double().exp().sum(-1), torch.ones(4, 5, dtype=torch.float64))
    torch.testing.assert_close(dense_again.gather(-1, sparse.indices), sparse.values)


def test_the_rest_of_a_confident_teacher_does_not_cancel() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    rest = SparseLogits.from_dense(logits, 1).rest.item()
    assert rest == pytest.approx(torch.log(torch.tensor(3.0)).item() - 60.0, abs=1e-4)


@pytest.mark.parametrize("k", [0, 8])
def test_k_has_bounds(k: int) -> None:
    with pytest.raises(UserError, match="1 to the number of classes, 7"):
        SparseLogits.from_dense(torch.zeros(2, 7), k)


def test_sparse_logits_are_refused_where_a_tensor_is_read() -> None:
    signals = {"logits": SparseLogits.from_dense(torch.zeros(2, 7), 3)}
    with pytest.raises(UserError, match="top-3 of 7"):
        dense(signals, "logits")


def test_detach_cuts_tensors_and_sparse_logits() -> None:
    leaf = torch.randn(2, 7, requires_grad=True)
    cut = detach({"a": leaf * 2, "b": SparseLogits.from_dense(leaf * 2, 3)})
    assert not cut["a"].requires_grad
    assert not cut["b"].values.requires_grad
    assert not cut["b"].rest.requires_grad


def test_move_walks_every_container() -> None:
    Pair = namedtuple("Pair", ["left", "right"])
    value = {
        "tensor": torch.ones(2),
        "list": [torch.ones(1), "text"],
        "pair": Pair(torch.ones(1), 3),
        "sparse": SparseLogits.from_dense(torch.zeros(2, 7), 3),
    }
    moved = move(value, "meta")
    assert moved["tensor"].device.type == "meta"
    assert moved["list"][0].device.type == "meta"
    assert moved["list"][1] == "text"
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].left.device.type == "meta"
    assert moved["sparse"].indices.device.type == "meta"


def test_batch_length_is_that_of_the_ids() -> None:
    assert batch_length({"input": ["a", "b", "c"], "id": torch.arange(3)}) == 3
