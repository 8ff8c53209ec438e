"""``hf:``: texts, images, sentence encoders and language models of transformers."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from limbeck.errors import UserError
from limbeck.models.references import load_network
from limbeck.signals import run_network
from tests.models.tiny import LABELS, TEXTS, bert_config, logits, picture, save_classifier, save_llama, word_tokenizer


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("hf") / "classifier")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_text_classifier(classifier):
    network = load_network(f"hf:{classifier}")
    assert (network.modality, network.task, network.labels, network.num_classes) == (
        "text", "classification", LABELS, 3,
    )  # fmt: skip
    assert network.reference == f"hf:{classifier}"
    assert not network.module.training
    batch = network.prepare(TEXTS)
    assert set(batch) == {"input_ids", "attention_mask"}
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        expected = reference(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits(network, TEXTS), expected)
    assert "BertForSequenceClassification" in network.describe()
    assert "3 classes" in network.describe()


def test_pairs_of_texts_are_one_sample(classifier):
    network = load_network(f"hf:{classifier}")
    pair = network.prepare([("a good film", "the bad film")])["input_ids"][0].tolist()
    separator = network.tokenizer.sep_token_id
    assert pair.count(separator) == 2
    with pytest.raises(UserError, match="input: given int"):
        network.prepare([1, 2])


def test_max_length_cuts_and_is_checked(classifier):
    assert load_network(f"hf:{classifier}", max_length=4).prepare([TEXTS[2]])["input_ids"].shape[1] == 4
    with pytest.raises(UserError, match=r"max_length: given 25; allowed: 1 to 24"):
        load_network(f"hf:{classifier}", max_length=25)


def test_equal_preparation_has_equal_description(classifier, llama):
    one, two = load_network(f"hf:{classifier}"), load_network(f"hf:{classifier}", key="student")
    other = load_network(f"hf:{llama}")
    assert one.preprocessing == two.preprocessing != other.preprocessing
    assert one.preprocessing_fingerprint() == two.preprocessing_fingerprint() != other.preprocessing_fingerprint()
    json.dumps(one.preprocessing)


def test_generic_label_names_are_no_labels(tmp_path):
    network = load_network(f"hf:{save_classifier(tmp_path / 'plain', labels=None)}")
    assert network.labels is None
    assert network.num_classes == 2


def test_saved_student_opens_in_transformers(classifier, tmp_path):
    network = load_network(f"hf:{classifier}", key="student")
    with torch.no_grad():
        network.module.classifier.bias.add_(1)
    network.save(tmp_path / "student")
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(opened(**tokens).logits, logits(network, TEXTS))


def test_student_gets_a_new_head_for_other_classes(classifier):
    same = load_network(f"hf:{classifier}", key="student", task="classification", labels=LABELS)
    assert same.notes == []
    new = load_network(f"hf:{classifier}", key="student", task="classification", labels=["a", "b"])
    assert (new.labels, new.num_classes) == (["a", "b"], 2)
    assert new.module.config.id2label == {0: "a", 1: "b"}
    assert any("replaced by a new one for 2" in note for note in new.notes)
    assert logits(new, TEXTS).shape == (4, 2)


def test_student_of_a_plain_configuration_starts_at_random(tmp_path):
    bert_config().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    student = load_network(f"hf:{tmp_path}", key="student", task="classification", labels=LABELS)
    assert not student.pretrained
    assert logits(student, TEXTS).shape == (4, 3)
    with pytest.raises(UserError, match="teacher: .*holds no"):
        load_network(f"hf:{tmp_path}", task="classification")


def test_student_borrows_the_teachers_tokenizer(classifier, tmp_path):
    bert_config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="student: .*tokenizer"):
        load_network(f"hf:{tmp_path}", key="student", task="classification", labels=LABELS)
    teacher = load_network(f"hf:{classifier}")
    student = load_network(f"hf:{tmp_path}", key="student", task="classification", teacher=teacher)
    assert student.preprocessing == teacher.preprocessing
    assert student.num_classes == 3


def test_teacher_without_a_trained_head_is_refused(tmp_path):
    transformers.BertModel(bert_config()).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"teacher: .*trained for classification.*classifier\.bias"):
        load_network(f"hf:{tmp_path}", task="classification")
    student = load_network(f"hf:{tmp_path}", key="student", task="classification", labels=LABELS)
    assert any("new at random" in note for note in student.notes)


def test_regression(tmp_path):
    folder = save_classifier(tmp_path / "one", labels=["score"], problem_type="regression")
    network = load_network(f"hf:{folder}")
    assert (network.task, network.labels, network.num_classes) == ("regression", None, None)
    assert logits(network, TEXTS).shape == (4, 1)
    three = save_classifier(tmp_path / "three")
    with pytest.raises(UserError, match="teacher: given 3 outputs; allowed: one output"):
        load_network(f"hf:{three}", task="regression")
    assert logits(load_network(f"hf:{three}", key="student", task="regression"), TEXTS).shape == (4, 1)


def test_sentence_encoder(classifier, tmp_path):
    network = load_network(f"hf:{classifier}", task="embedding")
    assert (network.task, network.width) == ("embedding", 16)
    batch = {"input": network.prepare(TEXTS)}
    embedding = network.forward(network.module, batch)["embedding"]
    torch.testing.assert_close(embedding, network.module.encode(TEXTS), atol=1e-5, rtol=1e-5)
    network.save(tmp_path / "encoder")
    assert (tmp_path / "encoder" / "modules.json").is_file()
    again = load_network(f"hf:{tmp_path / 'encoder'}")
    assert again.task == "embedding"
    torch.testing.assert_close(again.forward(again.module, batch)["embedding"], embedding)


def test_features_of_a_text_network(classifier):
    network = load_network(f"hf:{classifier}", task="features")
    assert network.forward(network.module, {"input": network.prepare(TEXTS)})["last_hidden_state"].shape[::2] == (4, 16)


def test_causal_language_model_is_aligned(llama):
    network = load_network(f"hf:{llama}")
    assert network.task == "causal-lm"
    batch = {"input": network.prepare(TEXTS)}
    batch |= network.targets(batch)
    ids, counts = batch["input"]["input_ids"], batch["input"]["attention_mask"].bool()
    with torch.no_grad():
        signals = network.forward(network.module, batch)
        whole = network.module(**batch["input"]).logits
    torch.testing.assert_close(signals["logits"], whole[:, :-1])
    assert torch.equal(batch["target"], ids[:, 1:])
    assert batch["mask"].sum() == (counts.sum(1) - 1).sum()
    # Row i is about token i + 1: the loss of transformers itself agrees.
    picked = signals["logits"][batch["mask"]]
    loss = torch.nn.functional.cross_entropy(picked, batch["target"][batch["mask"]])
    with torch.no_grad():
        reference = network.module(**batch["input"], labels=ids.masked_fill(~counts, -100)).loss
    torch.testing.assert_close(loss, reference)


def test_two_way_network_is_no_language_model(classifier):
    with pytest.raises(UserError, match="student: .*sees the tokens behind a place"):
        load_network(f"hf:{classifier}", key="student", task="causal-lm")


def test_image_classifier(vit, tmp_path):
    network = load_network(f"hf:{vit}")
    assert (network.modality, network.labels) == ("image", ["cat", "dog"])
    pictures = [picture(20, 30, seed) for seed in range(3)]
    inputs = network.prepare(pictures)
    assert inputs.shape == (3, 3, 16, 16)
    out = logits(network, pictures)
    assert out.shape == (3, 2)
    network.save(tmp_path / "student")
    again = load_network(f"hf:{tmp_path / 'student'}")
    assert again.preprocessing == network.preprocessing
    torch.testing.assert_close(logits(again, pictures), out)


def test_image_embedding(vit):
    network = load_network(f"hf:{vit}", task="embedding")
    signals = network.forward(network.module, {"input": network.prepare([picture(20, 20)])})
    assert signals["embedding"].shape == (1, network.width)


def test_image_network_without_preprocessing(vit, tmp_path):
    config = transformers.AutoConfig.from_pretrained(vit)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"teacher: .*preprocessor_config\.json"):
        load_network(f"hf:{tmp_path}")
    teacher = load_network(f"hf:{vit}")
    student = load_network(f"hf:{tmp_path}", key="student", teacher=teacher)
    assert student.preprocessing == teacher.preprocessing
    assert any("prepared as for the teacher" in note for note in student.notes)


def test_wrong_task_for_the_modality(vit):
    with pytest.raises(UserError, match=r"teacher task: given causal-lm; allowed: classification, .*reads images"):
        load_network(f"hf:{vit}", task="causal-lm")


def test_folder_without_configuration_is_listed(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"teacher: .*config\.json; it holds weights\.bin"):
        load_network(f"hf:{tmp_path}")


def test_missing_folder_names_near_ones(classifier):
    with pytest.raises(UserError, match=r"there is classifier; no such folder"):
        load_network(f"hf:{classifier.parent / 'clasifier'}")


def test_name_that_is_nowhere(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("the hub cannot be reached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"teacher: given hf:nobody/nothing; allowed: a local folder, or a name.*cache.*reached"
    ):
        load_network("hf:nobody/nothing")


def test_cached_name_opens_without_the_hub(monkeypatch, classifier):
    import huggingface_hub

    asked = []

    def cached(name, **options):
        asked.append((name, options))
        return str(classifier)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load_network("hf:somebody/classifier").labels == LABELS
    assert asked == [("somebody/classifier", {"local_files_only": True})]


def test_code_in_a_folder_is_never_run(tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}, "architectures": ["Mine"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(UserError, match="teacher: .*transformers itself knows"):
        load_network(f"hf:{tmp_path}")


def test_pickled_weights_are_refused(classifier, tmp_path):
    import pickle
    import shutil

    class Boom:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code was run')",))

    shutil.copytree(classifier, tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors").unlink()
    (tmp_path / "evil" / "pytorch_model.bin").write_bytes(pickle.dumps(Boom(), protocol=2))
    with pytest.raises(UserError, match="teacher: .*whole weights"):
        load_network(f"hf:{tmp_path / 'evil'}")


def test_torn_weights_are_refused(classifier, tmp_path):
    import shutil

    shutil.copytree(classifier, tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="teacher: .*whole weights"):
        load_network(f"hf:{tmp_path / 'torn'}")


def test_half_precision_checkpoints_open_in_float32(classifier, tmp_path):
    network = load_network(f"hf:{classifier}")
    network.module.to(torch.bfloat16)
    network.save(tmp_path)
    assert {p.dtype for p in load_network(f"hf:{tmp_path}").module.parameters()} == {torch.float32}


def test_saving_to_a_full_disk_is_one_clear_error(classifier, tmp_path):
    from limbeck.errors import LimbeckError

    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match="cannot write the network"):
        load_network(f"hf:{classifier}").save(tmp_path / "file" / "student")


def test_run_network_is_the_default(classifier):
    network = load_network(f"hf:{classifier}")
    assert network.forward is run_network
