"""``slice:`` and ``width:``: students cut out of their teacher."""

from __future__ import annotations

import pytest
import torch
import transformers

from limbeck.errors import UserError
from limbeck.models.derived import chosen_layers
from limbeck.models.references import load_network
from tests.models.tiny import LABELS, TEXTS, logits, save_classifier, save_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("derived") / "classifier", layers=6)


@pytest.fixture
def teacher(folder):
    return load_network(f"hf:{folder}")


@pytest.mark.parametrize(
    ("text", "depth", "layers"),
    [
        ("0,2,5", 6, [0, 2, 5]),
        ("even:3", 12, [0, 5, 11]),
        ("even:2", 6, [0, 5]),
        ("even:1", 6, [0]),
        ("even:6", 6, [0, 1, 2, 3, 4, 5]),
        ("first:2", 6, [0, 1]),
        ("last:2", 6, [4, 5]),
        ("0,-1", 6, [0, -1]),
    ],
)
def test_layers(text, depth, layers):
    assert chosen_layers(text, depth) == layers


@pytest.mark.parametrize("text", ["6", "-7", "even:7", "even:0", "odd:2", "a,b", ""])
def test_wrong_layers_name_what_is_allowed(teacher, text):
    with pytest.raises(UserError, match=r"student layers: given .*allowed: (numbers from 0 to 5|1 to 6|layers=)"):
        load_network(f"slice:layers={text}", key="student", teacher=teacher)


@pytest.mark.parametrize("reference", ["slice:3", "slice:even:2", "slice:depth=2", "slice:layers=0,width=3"])
def test_wrong_form(teacher, reference):
    with pytest.raises(UserError, match="student: .*layers=0,2,5, layers=even:3"):
        load_network(reference, key="student", teacher=teacher)


def test_slice_keeps_layers_and_everything_else(teacher, tmp_path):
    student = load_network("slice:layers=0,2,5", key="student", teacher=teacher)
    for new, old in enumerate((0, 2, 5)):
        for mine, theirs in zip(
            student.module.bert.encoder.layer[new].parameters(), teacher.module.bert.encoder.layer[old].parameters()
        ):
            assert torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()
    assert len(teacher.module.bert.encoder.layer) == 6
    assert (student.labels, student.num_classes, student.preprocessing) == (LABELS, 3, teacher.preprocessing)
    assert all(parameter.requires_grad for parameter in student.module.parameters())
    student.save(tmp_path)
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert opened.config.num_hidden_layers == 3
    torch.testing.assert_close(opened(**student.prepare(TEXTS)).logits, logits(student, TEXTS))


def test_slice_of_a_sentence_encoder(folder, tmp_path):
    teacher = load_network(f"hf:{folder}", task="embedding")
    student = load_network("slice:layers=even:2", key="student", teacher=teacher)
    student.save(tmp_path)
    again = load_network(f"hf:{tmp_path}")
    batch = {"input": student.prepare(TEXTS)}
    torch.testing.assert_close(
        again.forward(again.module, batch)["embedding"], student.forward(student.module.eval(), batch)["embedding"]
    )


def test_width_is_narrower_and_starts_from_the_teacher(teacher, tmp_path):
    student = load_network("width:hidden_size=8", key="student", teacher=teacher)
    config = student.module.config
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (8, 16, 2)
    wide = teacher.module.bert.embeddings.word_embeddings.weight
    assert torch.equal(student.module.bert.embeddings.word_embeddings.weight, wide[:, ::2])
    student.save(tmp_path)
    torch.testing.assert_close(logits(load_network(f"hf:{tmp_path}"), TEXTS), logits(student, TEXTS))


def test_width_with_options(teacher):
    student = load_network("width:hidden_size=12,num_attention_heads=4,layers=even:2", key="student", teacher=teacher)
    assert (student.module.config.num_attention_heads, len(student.module.bert.encoder.layer)) == (4, 2)
    assert logits(student, TEXTS).shape == (4, 3)


def test_width_of_a_sentence_encoder_tells_its_width(folder):
    teacher = load_network(f"hf:{folder}", task="embedding")
    student = load_network("width:hidden_size=8", key="student", teacher=teacher)
    embedding = student.forward(student.module, {"input": student.prepare(TEXTS)})["embedding"]
    assert embedding.shape == (4, 8)
    assert student.width == 8


def test_narrow_rotary_language_model(tmp_path):
    teacher = load_network(f"hf:{save_llama(tmp_path)}")
    student = load_network("width:hidden_size=16", key="student", teacher=teacher)
    assert student.module.config.head_dim == 4
    assert logits(student, TEXTS).shape == logits(teacher, TEXTS).shape
    with pytest.raises(UserError, match="student hidden_size: given 12; allowed: a multiple of 8"):
        load_network("width:hidden_size=12", key="student", teacher=teacher)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("width:hidden_size=7", r"student hidden_size: given 7; allowed: a multiple of 2 up to 16 \(2, 4, .*, 16\)"),
        ("width:hidden_size=32", "student hidden_size: given 32; allowed: a multiple of 2 up to 16"),
        ("width:hidden_size=half", "student hidden_size: given half; allowed: a whole number"),
        ("width:size=8", "student: .*width:hidden_size=NUMBER"),
        ("width:hidden_size=8,depth=3", "student option: given depth; .*hidden_size"),
    ],
)
def test_wrong_width(teacher, reference, message):
    with pytest.raises(UserError, match=message):
        load_network(reference, key="student", teacher=teacher)


def test_without_a_teacher():
    for reference in ("slice:layers=0", "width:hidden_size=8"):
        with pytest.raises(UserError, match="student: .*a teacher to cut the student out of"):
            load_network(reference, key="student")
