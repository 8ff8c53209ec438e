from __future__ import annotations

from typing import Any

import pytest
import torch

from limbeck.errors import UserError
from limbeck.signals import SparseLogits, run_network
from limbeck.sources.average import Average
from limbeck.sources.live import Live
from limbeck.sources.stored import Table
from limbeck.sources.student import EMA, Snapshot
from tests.sources.contract import check_source
from tests.sources.helpers import NEEDS, Network, batch, trained


def live(seed: int, **options: Any) -> Live:
    return Live(Network(seed, **options), taps={"middle": "middle"})


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_the_contract_of_every_source(space: str) -> None:
    check_source(Average([live(0), live(1)], [1, 3], space=space), batch(), NEEDS)


def test_a_sample_that_one_says_nothing_about_does_not_count() -> None:
    told = torch.arange(12) != 3
    silent = Table(batch()["id"], {"logits": torch.zeros(12, 5), "told": told})
    found = Average([live(0), silent])(batch(), ["logits"])
    assert torch.equal(found["told"], told)  # type: ignore[arg-type]
    assert set(Average([live(0)])(batch(), ["logits"])) == {"logits"}


def test_logits_are_averaged_by_weight() -> None:
    one, two = (source(batch())["logits"] for source in (live(0), live(1)))
    mixed = Average([live(0), live(1)], [1, 3])(batch(), ["logits"])["logits"]
    torch.testing.assert_close(mixed, 0.25 * one + 0.75 * two)
    mean = Average([live(0), live(1)])(batch())["logits"]
    torch.testing.assert_close(mean, (one + two) / 2)


def test_probabilities_are_averaged_as_a_mixture_also_with_a_weight_of_zero() -> None:
    one, two = (source(batch())["logits"].softmax(-1) for source in (live(0), live(1)))
    for weights in ([1.0, 3.0], [1.0, 0.0]):
        mixed = Average([live(0), live(1)], weights, space="probabilities")(batch(), ["logits"])["logits"]
        share = weights[0] / sum(weights)
        torch.testing.assert_close(mixed.softmax(-1), share * one + (1 - share) * two)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.2, 0.8), (0.0, 1.0)])
def test_sparse_logits_stay_sparse_and_are_the_mean_of_the_spread_ones(
    space: str, weights: tuple[float, float]
) -> None:
    def sparse(k: int) -> Live:
        def forward(model: Any, given: Any) -> dict[str, Any]:
            return {"logits": SparseLogits.from_dense(4 * run_network(model, given)["logits"], k)}

        return Live(Network(k, classes=9), forward=forward)

    one, two = sparse(3), sparse(4)
    found = Average([one, two], weights, space=space)(batch(), ["logits"])["logits"]
    assert isinstance(found, SparseLogits)
    logs = [source(batch(), ["logits"])["logits"].to_dense() for source in (one, two)]
    shares = torch.tensor(weights) / sum(weights)
    if space == "probabilities":
        whole = (shares[0] * logs[0].exp() + shares[1] * logs[1].exp()).log()
    else:
        whole = (shares[0] * logs[0] + shares[1] * logs[1]).log_softmax(-1)
    assert found.values.shape[-1] == 4
    torch.testing.assert_close(found.values, whole.gather(-1, found.indices))
    torch.testing.assert_close(found.values.exp().sum(-1) + found.rest.exp(), torch.ones(12))
    assert (found.indices.sort(-1).values.diff() > 0).all(), "every class once"
    best = whole.topk(3).values
    assert (found.values[..., :3] >= best - 1e-5).all()


def test_classes_that_sources_keep_both_are_exact() -> None:
    ids = torch.tensor([0])
    rows = [[0.7, 0.2, 0.06, 0.04], [0.1, 0.8, 0.06, 0.04]]
    kept = [SparseLogits.from_dense(torch.tensor([row]).log(), 2) for row in rows]

    def says(one: SparseLogits) -> Live:
        return Live(Network(0), forward=lambda model, given: {"logits": one})  # type: ignore[dict-item]

    mixed = Average([says(one) for one in kept], [1, 3], space="probabilities")({"id": ids, "input": ids}, ["logits"])
    found = mixed["logits"]
    assert isinstance(found, SparseLogits)
    probability = dict(zip(found.indices[0].tolist(), found.values[0].exp().tolist(), strict=True))
    assert probability == pytest.approx({1: 0.25 * 0.2 + 0.75 * 0.8, 0: 0.25 * 0.7 + 0.75 * 0.1})
    assert float(found.rest.exp()) == pytest.approx(0.1)


def test_sparse_beside_whole_logits_are_spread() -> None:
    def sparse(model: Any, given: Any) -> dict[str, Any]:
        return {"logits": SparseLogits.from_dense(run_network(model, given)["logits"], 5)}

    source = Average([Live(Network(0), forward=sparse), Live(Network(1))], space="probabilities")
    dense = Average([Live(Network(0)), Live(Network(1))], space="probabilities")
    torch.testing.assert_close(source(batch(), ["logits"])["logits"], dense(batch(), ["logits"])["logits"])


def test_only_common_signals_are_given_when_nothing_is_asked_for() -> None:
    ids = batch()["id"]
    assert set(Average([live(0), Table(ids, {"logits": torch.zeros(12, 5)})])(batch())) == {"logits"}


def test_sources_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="sources: given none"):
        Average([])
    with pytest.raises(UserError, match="space: given probs; allowed: logits, probabilities"):
        Average([live(0)], space="probs")
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(UserError, match="weights: given .*2 non-negative numbers"):
            Average([live(0), live(1)], weights)
    with pytest.raises(UserError, match=r"teacher signal logits: .*one shape for all sources"):
        Average([live(0), live(1, classes=4)])(batch(), ["logits"])


def test_changing_members_are_kept_in_the_state_and_frozen_ones_are_not() -> None:
    student = Network(2)
    source = Average([live(0), EMA(student, 0.5), Snapshot(student)])
    trained(student)
    source.after_step(student, 1)
    source.after_epoch(student, 1)
    state = {key: {"weights": {n: t.clone() for n, t in part["weights"].items()}}
             for key, part in source.state_dict().items()}  # fmt: skip
    assert set(state) == {"1", "2"}
    fresh = Average([live(0), EMA(Network(2), 0.5), Snapshot(Network(2))])
    before = fresh(batch(), ["logits"])["logits"]
    fresh.load_state_dict(state)
    after = fresh(batch(), ["logits"])["logits"]
    assert not torch.equal(before, after)
    assert torch.equal(after, source(batch(), ["logits"])["logits"])


def test_the_fingerprint_knows_members_weights_and_space() -> None:
    prints = {
        Average([live(0), live(1)]).fingerprint(),
        Average([live(1), live(0)], [1, 2]).fingerprint(),
        Average([live(0), live(1)], [1, 2]).fingerprint(),
        Average([live(0), live(1)], space="probabilities").fingerprint(),
        Average([live(0)]).fingerprint(),
    }
    assert len(prints) == 5
    assert len(Average([live(0), live(1)]).modules()) == 2
