from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertForSequenceClassification, RobertaForSequenceClassification

from tests.scripts import load_script


def example() -> ModuleType:
    return load_script("examples/trans-encoder.py")


def test_it_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    example().main()
    said = capsys.readouterr().out
    assert "cycle 2: 8 labels of cross-1" in said
    assert "24 numbers a sentence" in said


def test_unequal_encoders_teach_each_other_and_open_in_sentence_transformers(tmp_path: Path) -> None:
    module = example()
    method = module.distil(tmp_path, cycles=1)
    crosses, bis = method.choose("cross"), method.choose("bi")
    assert isinstance(crosses[0].classifier, BertForSequenceClassification)
    assert isinstance(crosses[1].classifier, RobertaForSequenceClassification)
    pairs = [("a cat sleeps", "the cat is asleep"), ("he plays", "the train is late")]
    for number in (0, 1):
        bis[number].save_pretrained(tmp_path / f"bi-{number}")
        crosses[number].save_pretrained(tmp_path / f"cross-{number}")
        theirs = SentenceTransformer(str(tmp_path / f"bi-{number}"), device="cpu").encode([a for a, _ in pairs])
        np.testing.assert_allclose(theirs, bis[number].encode([a for a, _ in pairs]).numpy(), atol=1e-5)
        scores = CrossEncoder(str(tmp_path / f"cross-{number}"), device="cpu").predict(pairs)
        np.testing.assert_allclose(scores, crosses[number].score(pairs).numpy(), atol=1e-5)
    expected = torch.stack([cross.score(pairs) for cross in crosses]).mean(0)
    torch.testing.assert_close(method.predict(pairs), expected)
