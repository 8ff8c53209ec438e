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


def test_sparse_logits_are_spread_before_they_are_averaged() -> None:
    def sparse(model: Any, given: Any) -> dict[str, Any]:
        return {"logits": SparseLogits.from_dense(run_network(model, given)["logits"], 5)}

    source = Average([Live(Network(0), forward=sparse), Live(Network(1), forward=sparse)], space="probabilities")
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
