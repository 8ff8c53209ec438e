from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from transformers import BertForSequenceClassification

from tests.scripts import load_script


def example() -> ModuleType:
    return load_script("examples/gt-self-distill.py")


def test_it_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    example().main()
    said = capsys.readouterr().out
    assert "ridge head on BertModel" in said
    assert "3 generations" in said


def test_the_head_learns_from_a_frozen_encoder_and_its_chain_is_a_closed_form() -> None:
    head, accuracy = example().ridge_head()
    assert accuracy > 0.5
    fixed = head.set_params(alpha=0.4).fit(head.X_fit_, head.target_)
    np.testing.assert_allclose(fixed.direct(4).fitted, fixed.chain_[3].fitted, atol=1e-9)


def test_every_generation_is_a_network_of_its_own() -> None:
    chain = example().classifier_chain(generations=2, epochs=1).chain
    assert all(isinstance(one, BertForSequenceClassification) for one in chain.networks)
    first, second = (next(one.parameters()) for one in chain.networks)
    assert not np.allclose(first.detach().numpy(), second.detach().numpy())
