"""The sheet's checks and pitfalls of trans-encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from limbeck.engine import HalfCycle
from limbeck.errors import UserError
from limbeck.models.pairs import CrossEncoder, body_of, pair_scores
from limbeck.models.sentence import SentenceEncoder
from limbeck.models.word_pieces import word_pieces
from limbeck.objectives import ScoreBCE, ScoreMSE
from limbeck.sources import Source, Table
from limbeck.systems.retrieval.trans_encoder import experiment as module
from limbeck.systems.retrieval.trans_encoder.experiment import EXPERIMENTS, FirstBy, Plan
from limbeck.systems.retrieval.trans_encoder.method import BI, CROSS, Recipe, TransEncoder
from tests.engine.helpers import Cut, DieAfter

WORDS = ["cat", "dog", "bird", "fish", "sleeps", "runs", "sings", "swims", "on", "the", "sofa", "park", "roof", "sea"]
GENERATOR = torch.Generator().manual_seed(0)


def sentence() -> str:
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (4,), generator=GENERATOR).tolist())


PAIRS = [(sentence(), sentence()) for _ in range(24)]
DEV = (PAIRS[:8], torch.arange(8.0))
TOKENIZER = word_pieces([" ".join(WORDS)], 80)
SMALL = {
    "cross": Recipe(epochs=1, batch_size=8, lr=1e-3, warmup=0.1, objective=ScoreBCE, select_every=2),
    "bi": Recipe(epochs=2, batch_size=8, lr=1e-3, select_every=2),
}


def encoder(seed: int = 0, width: int = 16, layers: int = 1) -> SentenceEncoder:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    return SentenceEncoder(BertModel(config), TOKENIZER, pooling="mean", max_length=16).eval()


def method(encoders: Any = None, **options: Any) -> TransEncoder:
    given: dict[str, Any] = {**SMALL, "cycles": 1, "max_length": 12, "accelerator": "cpu", **options}
    return TransEncoder(encoder() if encoders is None else encoders, **given)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def body(network: nn.Module) -> torch.Tensor:
    return torch.cat([v.flatten() for n, v in body_of(network).state_dict().items() if not n.startswith("pooler.")])


# The recipe.


def test_the_released_recipe_is_the_default() -> None:
    assert (CROSS.epochs, CROSS.batch_size, CROSS.lr, CROSS.warmup, CROSS.select_every) == (1, 32, 2e-5, 0.1, 200)
    assert (BI.epochs, BI.batch_size, BI.lr, BI.warmup, BI.select_every) == (10, 128, 5e-5, 0.0, 200)
    assert CROSS.objective is ScoreBCE
    assert BI.objective is ScoreMSE
    assert (CROSS.optimizer().schedule, CROSS.optimizer().weight_decay) == ("linear", 0.01)
    default = TransEncoder(encoder())
    assert (default.cycles, default.initialise, default.both_orders, default.max_length) == (3, "fresh", True, 32)


def test_labels_are_raw_cosines_of_the_newest_bi_encoder_and_then_sigmoids_in_one_order() -> None:
    done = method(cycles=2).fit(PAIRS)
    networks = {(step.cycle, step.form): step.network for step in done.steps_}
    ids = {"id": torch.arange(len(PAIRS))}
    for cycle, form, labeller in ((1, "bi", (0, "bi")), (1, "cross", (1, "cross")), (2, "bi", (1, "bi"))):
        said = done.labels_.read(cycle, f"{form}-0")(ids, ("score",))["score"]
        torch.testing.assert_close(said, pair_scores(networks[labeller], PAIRS), atol=1e-5, rtol=1e-5)


def test_the_cross_encoder_sees_both_orders_under_one_label() -> None:
    form = method()._form("cross", PAIRS, 0, None)
    columns = form.train(0).columns  # type: ignore[attr-defined]
    assert columns["input"][len(PAIRS) :] == [(second, first) for first, second in PAIRS]
    assert torch.equal(columns["id"], torch.arange(len(PAIRS)).repeat(2))
    assert len(method(both_orders=False)._form("cross", PAIRS, 0, None).train(0).columns["id"]) == len(PAIRS)  # type: ignore[attr-defined]
    assert len(form.ask().columns["id"]) == len(PAIRS), "labels of one order"  # type: ignore[attr-defined]


# Where the networks begin.


@pytest.mark.parametrize(
    ("policy", "cross_begins", "bi_begins"),
    [("fresh", "plain", "start"), ("start", "start", "start"), ("sequential", "previous", "previous")],
)
def test_three_policies(policy: str, cross_begins: str, bi_begins: str) -> None:
    start, plain, previous = encoder(0), encoder(1), encoder(2)
    made = method(start, plain=plain, initialise=policy)
    origins = {"plain": plain, "start": start, "previous": previous}
    assert torch.equal(body(made._initial(HalfCycle(1, "cross", 0, previous, start))), body(origins[cross_begins]))
    crossed = CrossEncoder.on(previous, max_length=24)
    assert torch.equal(body(made._initial(HalfCycle(1, "bi", 0, crossed, start))), body(origins[bi_begins]))


def test_b_0_and_the_plain_model_stay_as_they_are() -> None:
    start, plain = encoder(0), encoder(1)
    before = weights(start).clone(), weights(plain).clone()
    method(start, plain=plain, initialise="sequential").fit(PAIRS)
    assert torch.equal(weights(start), before[0])
    assert torch.equal(weights(plain), before[1])


# Mutual distillation.


def test_partners_of_unequal_width_share_the_mean_label() -> None:
    seen: list[torch.Tensor] = []

    def combine(labels: Sequence[Source]) -> Source:
        from limbeck.engine.alternation import mean_of

        mean = mean_of(labels)
        seen.append(torch.as_tensor(mean({"id": torch.arange(len(PAIRS))}, ("score",))["score"]))
        return mean

    partners = [encoder(0), encoder(1, width=24, layers=2)]
    done = method(partners, combine=combine).fit(PAIRS)
    expected = torch.stack([pair_scores(one, PAIRS) for one in partners]).mean(0)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    both = torch.stack([pair_scores(one, PAIRS) for one in done.choose("cross")]).mean(0)
    torch.testing.assert_close(done.predict(PAIRS), both)
    assert [body_of(one).config.hidden_size for one in done.choose("bi")] == [16, 24]


# Which network is taken.


def test_every_cycle_is_kept_and_dev_chooses_among_them_or_nobody_does() -> None:
    done = method(cycles=2).fit(PAIRS, DEV)
    assert [(s.cycle, s.form) for s in done.steps_] == [(0, "bi"), (1, "cross"), (1, "bi"), (2, "cross"), (2, "bi")]
    best = max((s for s in done.steps_ if s.form == "cross"), key=lambda s: s.dev)
    assert done.choose("cross", by="dev") == [best.network]
    assert done.choose("cross") == [done.steps_[3].network]
    without = method(cycles=1).fit(PAIRS)
    assert all(math.isnan(step.dev) for step in without.steps_)
    assert torch.equal(weights(without.steps_[1].network), weights(done.steps_[1].network)), "dev only looks on"


def test_select_keeps_the_best_evaluated_step() -> None:
    chosen, last = (method(select=select, seed=1).fit(PAIRS, DEV) for select in (True, False))
    cross = next(step for step in chosen.steps_ if step.form == "cross")
    assert cross.dev >= next(step for step in last.steps_ if step.form == "cross").dev
    with pytest.raises(UserError, match="dev"):
        method(select=True).fit(PAIRS)


# Pitfalls.


def test_pairs_that_are_empty_repeated_or_long_are_counted() -> None:
    long = " ".join(["cat"] * 40)
    done = method().fit([*PAIRS, PAIRS[0], (PAIRS[1][1], PAIRS[1][0]), ("", "cat"), (long, "dog")])
    assert done.counts_ == {"pairs": 25, "empty": 1, "repeated": 2, "long": 1}
    with pytest.raises(UserError, match="pairs"):
        method().fit([("", "cat")])


def test_without_a_cross_encoder() -> None:
    done = method(forms=("bi",), cycles=2).fit(PAIRS)
    assert [step.form for step in done.steps_] == ["bi", "bi", "bi"]
    with pytest.raises(UserError, match="form"):
        done.choose("cross")


def test_choices_are_refused_by_name() -> None:
    for key, value in (("initialise", "random"), ("forms", ("cross",)), ("plain", [encoder(), encoder()])):
        with pytest.raises(UserError, match=key):
            method(**{key: value})
    with pytest.raises(UserError, match="by"):
        method().fit(PAIRS).choose(by="test")


@pytest.mark.parametrize("step", [4, 10])
def test_a_cut_run_goes_on_to_the_same_bits(tmp_path: Path, step: int) -> None:
    whole = method(cycles=2).fit(PAIRS)
    with pytest.raises(Cut):
        method(cycles=2, out=tmp_path, callbacks=[DieAfter(step)], checkpoint_seconds=0.0).fit(PAIRS)
    resumed = method(cycles=2, out=tmp_path, resume=True).fit(PAIRS)
    for first, second in zip(whole.steps_, resumed.steps_, strict=True):
        assert torch.equal(weights(first.network), weights(second.network))
    assert [(one.cycle, one.producer) for one in resumed.labels_.rounds()] == [
        (1, "bi-0"),
        (1, "cross-0"),
        (2, "bi-0"),
        (2, "cross-0"),
    ]


# The experiment.


def scored(experiment: Any, plan: Plan) -> torch.Tensor:
    """What the first cross-encoder of an arm is asked to learn."""
    asked: list[torch.Tensor] = []

    class Looking(TransEncoder):
        def fit(self, pairs: Any, dev: Any = None) -> TransEncoder:
            own = [Table(torch.arange(len(pairs)), {"score": pair_scores(self.encoders[0], pairs)})]
            said = self.combine(own)({"id": torch.arange(len(pairs))}, ("score",))["score"]
            asked.append(torch.as_tensor(said))
            self.steps_ = []
            return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TransEncoder", Looking)
        experiment.train(plan, 0)
    return asked[0]


def test_who_labels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = EXPERIMENTS["minilm"]("smoke")
    bed = experiment.bed  # type: ignore[attr-defined]
    pairs = list(bed.splits(0).train.input)
    # Another encoder that is quick to open.
    monkeypatch.setattr(bed, "supervised", lambda: bed.encoder("second"))
    theirs = scored(experiment, Plan(by_minilm=True))
    torch.testing.assert_close(theirs, pair_scores(bed.encoder("second"), pairs))
    torch.testing.assert_close(scored(experiment, Plan()), pair_scores(bed.encoder("first"), pairs))
    turned = scored(experiment, Plan(by_minilm=True, shuffled=True))
    torch.testing.assert_close(turned.sort().values, theirs.sort().values)
    assert float((turned == theirs).float().mean()) < 0.2


def test_given_labels_are_for_the_first_round_only() -> None:
    ids = {"id": torch.arange(3)}
    combine = FirstBy(torch.tensor([5.0, 6.0, 7.0]))
    own = [Table(ids["id"], {"score": torch.tensor(value)}) for value in ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0])]
    rounds = [torch.as_tensor(combine(own)(ids, ("score",))["score"]).tolist() for _ in range(2)]
    assert rounds == [[5.0, 6.0, 7.0], [2.0, 3.0, 4.0]]


def test_b_0_stands_in_every_column_that_a_claim_compares() -> None:
    for name, kind in EXPERIMENTS.items():
        experiment = kind("smoke")
        given = experiment.run("none", 0).metrics
        assert {claim.metric for claim in experiment.claims if claim.over == "none"} <= given.keys(), name
        assert given["bi_1"] == given["cross_3"]
