"""``py:`` and ``small:``: networks of the user's own code, and small networks from scratch."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.references import load_network
from tests.models.tiny import LABELS, TEXTS, logits, picture, save_classifier

CODE = """
import torch
from torch import nn
from limbeck.data.images import ImageFormat
from limbeck.models.network import Network

calls = []

def linear():
    torch.manual_seed(0)
    calls.append(1)
    return nn.Linear(4, 3)

def sized(num_classes, labels=None):
    return nn.Linear(4, num_classes)

def images():
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), modality="image",
                   prepare=ImageFormat((4, 4), (4, 4), "stretch"), labels=["a", "b"], num_classes=2)

class Bag(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.table = nn.EmbeddingBag(40, num_classes)
    def forward(self, input_ids, attention_mask):
        return self.table(input_ids)

def text(num_classes, teacher):
    return Bag(num_classes)

def needs(secret):
    return nn.Linear(1, 1)

def number():
    return 3

class_ = linear
not_callable = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.fixture(scope="module")
def text_teacher(tmp_path_factory):
    return load_network(f"hf:{save_classifier(tmp_path_factory.mktemp('plain') / 'classifier')}")


def test_code_runs_only_with_the_flag(module):
    with pytest.raises(UserError, match=r"teacher: given py:own_networks:linear; allowed: .*--allow-py"):
        load_network(f"py:{module}:linear")
    assert "own_networks" not in sys.modules


def test_module_of_the_working_folder(module, tmp_path):
    network = load_network(f"py:{module}:linear", allow_py=True, sample=torch.zeros(4))
    assert (network.modality, network.num_classes) == ("tensor", 3)
    assert logits(network, torch.ones(2, 4)).shape == (2, 3)
    assert str(tmp_path) not in sys.path


def test_saved_weights_go_back_in(module, tmp_path):
    network = load_network(f"py:{module}:linear", allow_py=True, key="student", sample=torch.zeros(4))
    with torch.no_grad():
        network.module.weight.add_(1)
    network.save(tmp_path / "out")
    again = load_network(f"py:{module}:linear,weights={tmp_path / 'out' / 'model.safetensors'}", allow_py=True)
    assert torch.equal(again.module.weight, network.module.weight)
    with pytest.raises(UserError, match="teacher weights: given nowhere"):
        load_network(f"py:{module}:linear,weights=nowhere", allow_py=True)
    with pytest.raises(UserError, match="teacher weights: .*this very network"):
        load_network(
            f"py:{module}:sized,weights={tmp_path / 'out' / 'model.safetensors'}", allow_py=True, labels=["a", "b"]
        )


def test_what_the_function_asks_for_is_given(module):
    network = load_network(f"py:{module}:sized", key="student", allow_py=True, labels=["a", "b"], sample=torch.ones(4))
    assert (network.labels, network.num_classes) == (["a", "b"], 2)


def test_function_may_return_a_network(module):
    network = load_network(f"py:{module}:images", allow_py=True)
    assert logits(network, [picture(9, 9)]).shape == (1, 2)


def test_student_reads_what_its_teacher_reads(module, text_teacher):
    student = load_network(f"py:{module}:text", key="student", allow_py=True, teacher=text_teacher)
    assert student.preprocessing == text_teacher.preprocessing
    assert logits(student, TEXTS).shape == (4, 3)
    with pytest.raises(UserError, match="student: .*runs on text input as its prepare makes it"):
        load_network(f"py:{module}:linear", key="student", allow_py=True, teacher=text_teacher)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("own_networks", r"teacher: given py:own_networks; allowed: py:PACKAGE\.MODULE:CALLABLE"),
        ("own_netwrks:linear", "no module own_netwrks"),
        ("own_networks:linea", r"teacher py:own_networks:linea: given linea; allowed: .*linear"),
        ("own_networks:not_callable", "not_callable is a int"),
        ("own_networks:needs", r"works without secret; of these are known: labels, num_classes, teacher"),
        ("own_networks:number", "returned: given int; allowed: an nn.Module or a Network"),
    ],
)
def test_wrong_references(module, rest, message):
    with pytest.raises(UserError, match=message):
        load_network(f"py:{rest}", allow_py=True)


def test_a_module_missing_inside_the_users_module_is_no_wrong_reference(tmp_path, monkeypatch):
    (tmp_path / "own_broken.py").write_text("import nowhere_to_be_found")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        load_network("py:own_broken:x", allow_py=True)


@pytest.mark.parametrize("name", ["cnn_4k", "resnet8,width=4", "mlp,hidden=16-8"])
def test_small_image_networks(name, tmp_path):
    sample = torch.zeros(3, 16, 16, dtype=torch.uint8)
    student = load_network(f"small:{name}", key="student", labels=LABELS, sample=sample)
    assert (student.labels, student.num_classes, student.pretrained) == (LABELS, 3, False)
    raw = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = logits(student, raw)
    assert expected.shape == (2, 3)
    student.save(tmp_path)
    again = load_network(f"small:{tmp_path}", key="student")
    assert again.pretrained
    assert (again.labels, again.preprocessing) == (LABELS, student.preprocessing)
    torch.testing.assert_close(logits(again, raw), expected)


def test_small_network_on_floats():
    student = load_network("small:cnn_4k", key="student", labels=LABELS, sample=torch.zeros(1, 8, 8))
    assert student.modality == "tensor"
    assert logits(student, torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_small_network_on_image_files(tmp_path):
    picture(24, 24).save(tmp_path / "a.png")
    student = load_network("small:cnn_4k,size=16", key="student", labels=LABELS, sample=str(tmp_path / "a.png"))
    assert student.prepare.size == (16, 16)
    assert logits(student, [str(tmp_path / "a.png")]).shape == (1, 3)


@pytest.mark.parametrize("name", ["bag,width=8", "transformer,width=8,heads=2"])
def test_small_text_networks_share_the_teachers_tokenizer(text_teacher, name, tmp_path):
    student = load_network(f"small:{name}", key="student", teacher=text_teacher, task="classification")
    assert student.tokenizer is text_teacher.tokenizer
    expected = logits(student, TEXTS)
    assert expected.shape == (4, 3)
    student.save(tmp_path)
    torch.testing.assert_close(logits(load_network(f"small:{tmp_path}"), TEXTS), expected)


def test_a_small_network_teaches_only_from_a_folder():
    with pytest.raises(UserError, match="teacher: given small:cnn_4k; allowed: small:FOLDER of a trained one"):
        load_network("small:cnn_4k", labels=LABELS, sample=torch.zeros(1, 8, 8))


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("small:cnn_5k", {"labels": LABELS}, r"student: given small:cnn_5k; allowed: small:cnn_4k"),
        ("small:cnn_4k,depth=3", {"labels": LABELS}, "student option: given depth; allowed: size, channels"),
        ("small:cnn_4k,size=big", {"labels": LABELS}, "student size: given big; allowed: a whole number"),
        ("small:cnn_4k", {}, "student: given small:cnn_4k; allowed: known classes"),
        ("small:bag", {"labels": LABELS}, "a teacher with a tokenizer"),
        ("small:cnn_4k", {"labels": LABELS, "task": "embedding"}, "student task: given embedding"),
    ],
)
def test_wrong_small_networks(reference, options, message):
    with pytest.raises(UserError, match=message):
        load_network(reference, key="student", **options)
