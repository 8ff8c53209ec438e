"""``pt2:``: exported programs as teachers."""

from __future__ import annotations

import zipfile

import pytest
import torch
from torch import nn

from limbeck.cache.fingerprint import fingerprint_module
from limbeck.errors import UserError
from limbeck.models.references import load_network
from limbeck.sources import Live
from tests.models.tiny import TEXTS, logits, picture, word_tokenizer


def convnet():
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), *head).eval()


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 4)

    def forward(self, input_ids, attention_mask):
        weight = attention_mask.unsqueeze(-1).float()
        return {"logits": (self.embedding(input_ids) * weight).sum(1)}


def save(module, path, *, batch=1, dynamic=None, example=None):
    inputs = (torch.randn(batch, 3, 16, 16),) if example is None else example
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=dynamic), path)
    return path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    return save(convnet(), tmp_path_factory.mktemp("pt2") / "fixed.pt2")


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    dynamic = ({0: torch.export.Dim("batch", min=2, max=8)},)
    return save(convnet(), tmp_path_factory.mktemp("pt2") / "bounded.pt2", batch=4, dynamic=dynamic)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_any_batch_runs_through_a_program_of_one_size(fixed, bounded, count):
    images = [picture(20, 20, seed) for seed in range(count)]
    for path, sizes in ((fixed, "batches of 1"), (bounded, "batches of 2 to 8")):
        network = load_network(f"pt2:{path}")
        assert (network.modality, network.num_classes) == ("image", 5)
        assert any(sizes in note for note in network.notes)
        with torch.no_grad():
            expected = convnet()(network.prepare(images))
        torch.testing.assert_close(logits(network, images), expected)


def test_it_is_a_frozen_teacher_like_any_other(bounded):
    network = load_network(f"pt2:{bounded}")
    assert not network.module.train().training
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    batch = {"input": network.prepare([picture(16, 16)] * 3), "id": torch.arange(3)}
    assert Live(network.module)(batch, ("logits",))["logits"].shape == (3, 5)
    assert fingerprint_module(network.module) == fingerprint_module(load_network(f"pt2:{bounded}").module)


def test_normalisation_can_be_given(fixed):
    plain = load_network(f"pt2:{fixed}")
    assert any("set mean= and std=" in note for note in plain.notes)
    network = load_network(f"pt2:{fixed},mean=0.1-0.2-0.3,std=0.5")
    assert (network.preprocessing["mean"], network.preprocessing["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    with pytest.raises(UserError, match=r"teacher mean: given 0\.1-0\.2; allowed: 3 numbers"):
        load_network(f"pt2:{fixed},mean=0.1-0.2")
    with pytest.raises(UserError, match="teacher option: given size; allowed: mean, std, tokenizer"):
        load_network(f"pt2:{fixed},size=3")


def test_other_sizes_are_refused_by_name(fixed):
    network = load_network(f"pt2:{fixed}")
    with pytest.raises(UserError, match="input input of pt2:.*given 2 x 3 x 20 x 20; allowed: 1 x 3 x 16 x 16"):
        network.module(torch.zeros(2, 3, 20, 20))


def test_texts(tmp_path):
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=24)
    shape = {0: batch, 1: length}
    example = (torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64))
    path = save(Tokens().eval(), tmp_path / "text.pt2", dynamic=(shape, shape), example=example)
    network = load_network(f"pt2:{path},tokenizer={tmp_path / 'tokenizer'}")
    assert network.modality == "text"
    with torch.no_grad():
        expected = network.module.graph(*network.prepare(TEXTS).values())["logits"]
    torch.testing.assert_close(logits(network, TEXTS), expected)
    with pytest.raises(UserError, match=r"teacher: .*tokenizer=FOLDER; it reads tokens"):
        load_network(f"pt2:{path}")
    with pytest.raises(UserError, match="teacher tokenizer: given .*nowhere"):
        load_network(f"pt2:{path},tokenizer={tmp_path / 'nowhere'}")
    static = save(Tokens().eval(), tmp_path / "static.pt2", example=example)
    with pytest.raises(UserError, match="for exactly 5 tokens; allowed: a free number"):
        load_network(f"pt2:{static},tokenizer={tmp_path / 'tokenizer'}")


def test_embedding(fixed):
    network = load_network(f"pt2:{fixed}", task="embedding")
    assert network.width == 5


def test_tensors_need_no_preparation(tmp_path):
    path = save(nn.Linear(7, 3).eval(), tmp_path / "linear.pt2", example=(torch.randn(1, 7),))
    network = load_network(f"pt2:{path}")
    assert network.modality == "tensor"
    assert logits(network, torch.zeros(4, 7)).shape == (4, 3)


def test_never_a_student(fixed):
    with pytest.raises(UserError, match="student: .*trainable weights; an exported graph cannot be trained"):
        load_network(f"pt2:{fixed}", key="student")


@pytest.mark.filterwarnings("ignore")
def test_network_exported_in_training_mode_is_refused(tmp_path):
    path = save(convnet().train(), tmp_path / "training.pt2", batch=4)
    with pytest.raises(UserError, match=r"exported in eval mode; .*call \.eval\(\)"):
        load_network(f"pt2:{path}")


def test_wrong_files(fixed, tmp_path):
    with pytest.raises(UserError, match=r"there is fixed\.pt2; no such file"):
        load_network(f"pt2:{fixed.with_name('fix.pt2')}")
    (tmp_path / "junk.pt2").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a file of torch\.export\.save"):
        load_network(f"pt2:{tmp_path / 'junk.pt2'}")
    (tmp_path / "torn.pt2").write_bytes(fixed.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"a file of torch\.export\.save"):
        load_network(f"pt2:{tmp_path / 'torn.pt2'}")


def rewritten(source, target, change):
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as made:
        for name in archive.namelist():
            name, content = change(name, archive.read(name))
            made.writestr(name, content)
        return target


def test_pickled_weights_and_samples_are_never_loaded(fixed, tmp_path):
    import pickle

    class Boom:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code was run')",))

    def config(name, content):
        weights = name.endswith("weights_config.json")
        return name, content.replace(b'"use_pickle": false', b'"use_pickle": true') if weights else content

    def sample(name, content):
        return name, pickle.dumps(Boom(), protocol=2) if "sample_inputs" in name else content

    def code(name, content):
        return (f"{name}/../aotinductor/model.so" if "sample_inputs" in name else name), content

    for place, change in enumerate((config, sample, code)):
        evil = rewritten(fixed, tmp_path / f"evil{place}.pt2", change)
        with pytest.raises(UserError, match="no pickle is loaded"):
            load_network(f"pt2:{evil}")
