"""Label spaces and tokenizers, compared by content."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from limbeck.errors import UserError
from limbeck.models.compare import compare_labels, compare_tokenizers, match_labels
from limbeck.models.network import Network
from limbeck.models.references import load_network
from tests.models.tiny import TEXTS, WORDS, byte_tokenizer, logits, save_llama, word_tokenizer


def three(labels=("a", "b", "c")):
    network = Network(nn.Identity(), labels=list(labels) if labels else None, num_classes=3)
    return network, {"input": torch.tensor([[1.0, 2.0, 3.0]])}


def test_same_order_changes_nothing():
    network, _ = three()
    forward = network.forward
    assert compare_labels(network, ["a", "b", "c"]) == ""
    assert network.forward is forward


def test_other_order_is_re_ordered_and_said():
    network, batch = three()
    before = network.preprocessing_fingerprint()
    note = compare_labels(network, ["c", "a", "b"])
    assert "re-ordered" in note
    assert network.forward(network.module, batch)["logits"].tolist() == [[3.0, 1.0, 2.0]]
    assert network.labels == ["c", "a", "b"]
    # A teacher that answers in another order has another cache.
    assert network.preprocessing_fingerprint() != before


def test_spelling_is_forgiven():
    assert match_labels(["Sports Car", "truck"], ["truck", "sports_car"]) == [1, 0]
    assert match_labels(["Cat", "dog"], ["cat", "dog"]) is None


def test_spelling_is_not_forgiven_when_it_tells_classes_apart():
    with pytest.raises(UserError, match="no class 'AB'"):
        match_labels(["ab", "a b"], ["AB", "a-b"])


def test_other_classes_of_the_same_number_are_refused():
    network, _ = three()
    with pytest.raises(UserError, match=r"teacher labels: given no class 'd' \(a, b, c\); allowed: .*a, b, d"):
        compare_labels(network, ["a", "b", "d"])


def test_other_numbers_are_refused():
    network, _ = three()
    with pytest.raises(UserError, match=r"student labels: given 3 classes .*the 2 classes of the data \(a, b\)"):
        compare_labels(network, ["a", "b"], key="student labels")
    with pytest.raises(UserError, match="the 5 classes of the data"):
        compare_labels(network, 5)


def test_unnamed_classes_are_taken_in_order():
    network, _ = three(None)
    assert "taken to be in the data's order" in compare_labels(network, ["x", "y", "z"])
    named, _ = three()
    assert "only number their classes" in compare_labels(named, 3)
    assert compare_labels(network, None) == ""


def test_same_tokenizer(tmp_path):
    folder = save_llama(tmp_path)
    teacher, student = load_network(f"hf:{folder}"), load_network(f"hf:{folder}", key="student")
    assert compare_tokenizers(teacher, student) == ""


def test_padded_vocabularies_are_cut(tmp_path):
    teacher = load_network(f"hf:{save_llama(tmp_path / 'a', padding=7)}")
    student = load_network(f"hf:{save_llama(tmp_path / 'b')}", key="student")
    size = len(student.tokenizer)
    assert logits(teacher, TEXTS).shape[-1] == size + 7
    assert f"compared on the {size} tokens" in compare_tokenizers(teacher, student)
    assert logits(teacher, TEXTS).shape == logits(student, TEXTS).shape
    assert logits(teacher, TEXTS).shape[-1] == size


def test_equal_padding_gets_no_mass_either(tmp_path):
    folder = save_llama(tmp_path, padding=7)
    teacher, student = load_network(f"hf:{folder}"), load_network(f"hf:{folder}", key="student")
    size = len(student.tokenizer)
    assert f"compared on the {size} tokens" in compare_tokenizers(teacher, student)
    assert logits(teacher, TEXTS).shape[-1] == logits(student, TEXTS).shape[-1] == size


def shuffled(tokenizer, seed=0):
    """The same tokens and rules under other numbers."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {entry["id"] for entry in content["added_tokens"]}
    words = [token for token, number in content["model"]["vocab"].items() if number not in special]
    numbers = [content["model"]["vocab"][token] for token in words]
    random.Random(seed).shuffle(numbers)
    content["model"]["vocab"].update(zip(words, numbers, strict=True))
    made = Tokenizer.from_str(json.dumps(content))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def test_the_same_tokens_under_other_numbers_can_be_translated(tmp_path):
    folder = save_llama(tmp_path / "a", padding=5)
    teacher, same = load_network(f"hf:{folder}"), load_network(f"hf:{folder}", key="student")
    student = Network(same.module, same.forward, tokenizer=shuffled(same.tokenizer))
    with pytest.raises(UserError, match=r"0 tokens are missing, 0 are new, \d+ have other numbers .*remap=True"):
        compare_tokenizers(teacher, student)
    assert "the teacher translates" in compare_tokenizers(teacher, student, remap=True)
    size = len(same.tokenizer)
    text = "the quick brown fox"
    theirs, ours = (torch.tensor([side.tokenizer(text).input_ids]) for side in (same, student))
    assert not torch.equal(theirs, ours)
    with torch.no_grad():
        want = same.forward(same.module, {"input": {"input_ids": theirs}})["logits"]
        found = teacher.forward(teacher.module, {"input": {"input_ids": ours}})["logits"]
    assert found.shape[-1] == size
    # Token for token: what the teacher gives to the student's id is what it gave to its own id of that word.
    for word, number in student.tokenizer.get_vocab().items():
        torch.testing.assert_close(found[..., number], want[..., same.tokenizer.get_vocab()[word]])


def test_other_vocabularies_name_the_ways_out():
    with pytest.raises(UserError, match="likelihood_matching or universal_logit_distance"):
        compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(byte_tokenizer()))


def test_which_markers_differ():
    other = word_tokenizer()
    other.sep_token = "[MASK]"
    assert "templates: sep_token" in compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(other))


def with_tokenizer(tokenizer):
    return Network(nn.Identity(), tokenizer=tokenizer)


def test_other_vocabulary_of_the_same_size_is_refused():
    swapped = [WORDS[1], WORDS[0], *WORDS[2:]]
    with pytest.raises(UserError, match=r"student tokenizer: given another vocabulary: 0 .*2 have other numbers"):
        compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(word_tokenizer(swapped)))
    with pytest.raises(UserError, match=r"0 tokens are missing, 1 are new"):
        compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(word_tokenizer([*WORDS, "new"])))


def test_other_normaliser_is_refused():
    from tokenizers import normalizers

    other = word_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(UserError, match="another normaliser"):
        compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(other))


def test_template_alone_is_noted():
    other = word_tokenizer()
    other.chat_template = "{{ messages }}"
    assert "special tokens or templates" in compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(other))


def test_missing_tokenizer():
    with pytest.raises(UserError, match="student tokenizer: given a student without"):
        compare_tokenizers(with_tokenizer(word_tokenizer()), with_tokenizer(None))
