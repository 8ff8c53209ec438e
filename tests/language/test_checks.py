from __future__ import annotations

import pytest

from limbeck.engine import fit
from limbeck.errors import UserError
from limbeck.language import Decoding, OnPolicy, Replayed, SequenceDistiller, StoredText
from limbeck.objectives import KL, DataCrossEntropy, JensenShannon, ReverseKL
from limbeck.systems.language.multi_granularity.identities import END, PAD, network, texts
from tests.language.test_distiller import loader


def test_refuses_another_vocabulary() -> None:
    other = network()
    other.config.vocab_size = 50  # type: ignore[union-attr]
    with pytest.raises(UserError, match="tokenizer"):
        SequenceDistiller(network(), KL(), other)


def test_a_sampled_estimator_needs_the_text_of_its_sampler() -> None:
    on_policy = OnPolicy(Decoding(6, END, PAD))
    reverse = DataCrossEntropy() + 0.5 * ReverseKL(estimator="k3")
    with pytest.raises(UserError, match="reverse_kl estimator k3: given text by DataText; .*OnPolicy"):
        SequenceDistiller(network(), reverse, network(1))
    with pytest.raises(UserError, match="given text by Replayed"):
        SequenceDistiller(network(), reverse, network(1), writer=Replayed(on_policy, 4))
    for decoding in (Decoding(6, END, PAD, top_p=0.9), Decoding(6, END, PAD, temperature=0.7)):
        with pytest.raises(UserError, match="samples at temperature"):
            SequenceDistiller(network(), reverse, network(1), writer=OnPolicy(decoding))
    with pytest.raises(UserError, match="kl estimator k1: given text by OnPolicy; .*StoredText"):
        SequenceDistiller(network(), KL(estimator="k1"), network(1), writer=on_policy)
    stored = StoredText(texts(12), loader().columns["id"])
    for objective, writer in (
        (reverse, on_policy),
        (JensenShannon(estimator="k1"), on_policy),
        (KL(estimator="k1"), stored),
        (KL(), on_policy),
    ):
        one = SequenceDistiller(network(), objective, network(1), writer=writer)
        assert fit(one, loader(), steps=2, accelerator="cpu").steps == 2
