"""Small real inputs: an image folder, a table of texts, and transformers folders with random weights."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.job.helpers import Job
from tests.models.tiny import save_chat_llama

WORDS = ["good", "great", "fine", "lovely", "bad", "awful", "poor", "sad", "film", "book", "tale", "plot"]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 x 12 pictures that differ in their colour."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, name in enumerate(("a_red", "b_green", "c_blue")):
        (root / name).mkdir()
        for index in range(40):
            pixels = draw.integers(0, 120, (12, 12, 3), dtype=np.uint8)
            pixels[..., number] += 100
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def text_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short reviews whose label is the mood of their first word."""
    path, draw = tmp_path_factory.mktemp("table") / "reviews.csv", np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(120):
            good = index % 2 == 0
            first = WORDS[draw.integers(0, 4)] if good else WORDS[draw.integers(4, 8)]
            writer.writerow([f"{first} {WORDS[draw.integers(8, 12)]} {index}", "positive" if good else "negative"])
    return path


def _tokenizer() -> object:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="session")
def text_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier of four layers with random weights, as a transformers folder."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of three layers with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("language")
    config = GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=2, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of four layers with random weights, tied embeddings and a chat template."""
    return save_chat_llama(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def chat_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of one to three turns about animals, each with the name of a teacher."""
    path, draw = tmp_path_factory.mktemp("chats") / "chat.parquet", np.random.default_rng(0)
    rows = []
    for number in range(48):
        turns = []
        for _ in range(draw.integers(1, 4)):
            animal, does = [("cat", "sleeps"), ("dog", "runs"), ("bird", "sings")][draw.integers(0, 3)]
            turns.append({"role": "user", "content": f"what does the {animal} {number}"})
            turns.append({"role": "assistant", "content": f"the {animal} {does}"})
        rows.append({"messages": turns, "by": "ab"[number % 2]})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def job(chat_model: Path, chat_table: Path) -> Job:
    """Half of the layers taught by the whole."""
    return f"hf:{chat_model}", "slice:layers=even:2", f"parquet:{chat_table}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds in which speed is measured."""
    empty: dict[str, dict[str, float]] = {name: {} for name in ("teacher", "student")}
    monkeypatch.setattr("limbeck.job.run.costs", lambda plan, networks: empty)
