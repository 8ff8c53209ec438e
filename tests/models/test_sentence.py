"""Sentence encoders on a tiny random BERT."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from limbeck.errors import UserError
from limbeck.export import export
from limbeck.models.sentence import SentenceEncoder, pool
from limbeck.signals import run_network
from tests.models.tiny import bert_config, word_tokenizer

TEXTS = [
    "the quick brown fox",
    "a dog",
    "the lazy fox jumps over the quick brown dog of copper stills",
    "copper",
    "the still of the lazy dog jumped over a quick fox",
]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return transformers.BertModel(bert_config(2)).eval()


def test_pooling_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [float("nan"), 9.0]], [[7.0, 7.0], [1.0, 1.0], [3.0, 5.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 4.0], [2.0, 3.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, 2.0], [1.0, 1.0]]
    assert pool(hidden, torch.zeros(2, 3), "mean").tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_change_an_embedding(bert, tokenizer, pooling):
    encoder = SentenceEncoder(bert, tokenizer, pooling=pooling).eval()
    together = encoder.tokenize(TEXTS)
    assert (together["attention_mask"] == 0).any()
    signals = run_network(encoder, {"input": together})
    assert set(signals) == {"embedding", "last_hidden_state"}
    for row, text in enumerate(TEXTS):
        alone = encoder(**encoder.tokenize([text]))["embedding"]
        torch.testing.assert_close(signals["embedding"][row], alone[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(signals["embedding"].norm(dim=-1), torch.ones(len(TEXTS)))


def test_garbage_under_the_padding_does_not_change_an_embedding(bert, tokenizer):
    encoder = SentenceEncoder(bert, tokenizer).eval()
    inputs = encoder.tokenize(TEXTS)
    other = {**inputs, "input_ids": torch.where(inputs["attention_mask"] == 0, 7, inputs["input_ids"])}
    torch.testing.assert_close(encoder(**inputs)["embedding"], encoder(**other)["embedding"])


def test_encode_keeps_the_order_and_the_mode(bert, tokenizer):
    encoder = SentenceEncoder(bert, tokenizer)
    encoder.train()
    encoder.transformer.pooler.eval()
    found = encoder.encode(TEXTS, batch_size=2)
    assert encoder.training
    assert encoder.transformer.training
    assert not encoder.transformer.pooler.training
    encoder.eval()
    single = torch.cat([encoder(**encoder.tokenize([text]))["embedding"] for text in TEXTS])
    torch.testing.assert_close(found, single, atol=1e-6, rtol=1e-5)
    assert encoder.encode([]).shape == (0, 16)
    # The vectors must serve as targets of a loss: inference tensors cannot.
    (encoder(**encoder.tokenize(TEXTS))["embedding"] * found).sum().backward()
    assert encoder.transformer.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_long_texts_are_cut(bert, tokenizer):
    encoder = SentenceEncoder(bert, tokenizer, max_length=6)
    assert encoder.tokenize(["the fox " * 50])["input_ids"].shape == (1, 6)
    assert encoder.tokenize(["the fox " * 50], max_length=4)["input_ids"].shape == (1, 4)
    assert SentenceEncoder(bert, tokenizer).encode(["the fox " * 50]).shape == (1, 16)


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_a_saved_folder_opens_everywhere(bert, tokenizer, pooling, normalize, tmp_path, capfd):
    encoder = SentenceEncoder(bert, tokenizer, pooling=pooling, normalize=normalize, max_length=20).eval()
    capfd.readouterr()
    encoder.save_pretrained(tmp_path / "student")
    found = encoder.encode(TEXTS)

    again = SentenceEncoder.from_folder(tmp_path / "student")
    assert capfd.readouterr() == ("", "")
    assert (again.pooling, again.normalize, again.max_length) == (pooling, normalize, 20)
    assert torch.equal(again.encode(TEXTS), found)

    plain = transformers.AutoModel.from_pretrained(tmp_path / "student")
    assert all(torch.equal(value, bert.state_dict()[name]) for name, value in plain.state_dict().items())

    import sentence_transformers as library

    theirs = library.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    torch.testing.assert_close(
        theirs.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False), found, atol=1e-6, rtol=1e-5
    )
    assert theirs.max_seq_length == 20

    theirs.save(str(tmp_path / "theirs"))
    back = SentenceEncoder.from_folder(tmp_path / "theirs")
    assert (back.pooling, back.normalize) == (pooling, normalize)
    torch.testing.assert_close(back.encode(TEXTS), found, atol=1e-6, rtol=1e-5)


def test_a_plain_transformers_folder_gets_the_mean(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = SentenceEncoder.from_folder(tmp_path)
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("mean", False, 24)
    assert SentenceEncoder.from_folder(tmp_path, pooling="cls", normalize=True).pooling == "cls"


def test_what_cannot_be_followed_is_refused(bert, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        SentenceEncoder.from_folder(tmp_path)
    SentenceEncoder(bert, tokenizer).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    for change, message in [
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": False}, "none"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
    ]:
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            SentenceEncoder.from_folder(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="Dense"):
        SentenceEncoder.from_folder(tmp_path)


def test_wrong_arguments_are_named(bert, tokenizer):
    with pytest.raises(UserError, match="pooling"):
        SentenceEncoder(bert, tokenizer, pooling="max")
    with pytest.raises(UserError, match="max_length: given 99"):
        SentenceEncoder(bert, tokenizer, max_length=99)
    with pytest.raises(UserError, match="texts"):
        SentenceEncoder(bert, tokenizer).encode("one text")
    with pytest.raises(UserError, match="tokenizer"):
        SentenceEncoder(bert).encode(["a text"])


def test_a_sentence_encoder_can_be_exported(bert, tokenizer, tmp_path):
    encoder = SentenceEncoder(bert, tokenizer)
    report = export(encoder, encoder.tokenize(TEXTS), tmp_path / "student.onnx", outputs=["embedding"])
    assert report.outputs == ["embedding"]
    assert report.inputs == {name: ["batch", "sequence"] for name in report.inputs}
    assert report.worst.max_abs_difference < 1e-5
