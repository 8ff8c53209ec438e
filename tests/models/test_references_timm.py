"""``timm:`` without torchvision: networks, their preprocessing, weights and saved folders."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.references import load_network
from limbeck.models.timm import import_timm
from limbeck.models.torchvision_names import InterpolationMode, MissingTorchvision, _modules, standing_in
from tests.models.tiny import logits, picture

timm = import_timm()
LABELS = ["cat", "dog", "fox"]
# A vision transformer of a few thousand weights, made by timm's own constructor arguments.
VIT = "timm:vit_tiny_patch16_224,img_size=32,depth=3,embed_dim=24,num_heads=2"
PICTURES = [picture(40, 30, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return load_network(VIT, key="student", labels=LABELS)


def test_timm_imports_in_a_fresh_process_and_torchvision_stays_absent():
    code = (
        "import sys, importlib.util; there = importlib.util.find_spec('torchvision') is not None;"
        "from limbeck.models.timm import import_timm; timm = import_timm(); import torch;"
        "assert timm.create_model('resnet18', num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2);"
        "assert ('torchvision' in sys.modules) == there;"
        "assert (importlib.util.find_spec('torchvision') is not None) == there"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_networks_run_forward(name):
    network = load_network(f"timm:{name},img_size=32", key="student", labels=LABELS)
    assert network.prepare.size == (32, 32)
    assert logits(network, PICTURES).shape == (3, 3)


def test_stand_ins_are_inert_and_taken_back():
    lent = _modules()
    with pytest.raises(MissingTorchvision, match=r"torchvision\.datasets\.ImageFolder: torchvision is needed"):
        lent["torchvision.datasets"].ImageFolder("somewhere")
    with pytest.raises(MissingTorchvision, match=r"torchvision\.transforms\.Compose"):
        _ = lent["torchvision.transforms"].Compose
    assert lent["torchvision.transforms.functional"].InterpolationMode is InterpolationMode
    assert not hasattr(lent["torchvision"], "__something__")


def test_a_real_torchvision_is_left_alone(monkeypatch):
    real = type(sys)("torchvision")
    real.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision", real)
    with standing_in() as lent:
        assert not lent
        assert sys.modules["torchvision"] is real
    assert sys.modules["torchvision"] is real


def test_stand_ins_leave_no_trace_after_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    seen = []

    def fail():
        with standing_in() as lent:
            seen.extend([lent, "torchvision.ops.misc" in sys.modules])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [True, True]
    assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]


def test_pixels_are_those_of_timms_own_evaluation(student):
    config = timm.data.resolve_data_config({"img_size": 32}, model=student.module)
    assert student.preprocessing["interpolation"] == config["interpolation"]
    larger = int(32 / config["crop_pct"])
    image = PICTURES[0].resize((larger, int(larger * 40 / 30)), 3)
    top = (image.height - 32) // 2
    crop = np.asarray(image.crop(((larger - 32) // 2, top, (larger - 32) // 2 + 32, top + 32)), dtype=np.float32)
    expected = (crop.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(student.prepare([PICTURES[0]])[0].numpy(), expected, atol=1e-6)


def test_student_is_random_and_says_so(student):
    assert not student.pretrained
    assert (student.labels, student.num_classes, student.modality) == (LABELS, 3, "image")
    assert any("random" in note for note in student.notes)


def test_saved_folder_is_read_by_us_and_by_timm(student, tmp_path):
    student.save(tmp_path)
    again = load_network(f"timm:{tmp_path}")
    assert again.pretrained
    assert (again.labels, again.preprocessing) == (LABELS, student.preprocessing)
    expected = logits(student, PICTURES)
    assert torch.equal(logits(again, PICTURES), expected)
    own = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(own(student.prepare(PICTURES)), expected)


def test_weights_alone_are_a_checkpoint_for_timm(student, tmp_path):
    student.save(tmp_path)
    path = str(tmp_path / "model.safetensors")
    own = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2, num_classes=3, checkpoint_path=path
    ).eval()
    with torch.no_grad():
        assert torch.equal(own(student.prepare(PICTURES)), logits(student, PICTURES))


def test_slices_save_and_open(student, tmp_path):
    vit = load_network("slice:layers=0,2", key="student", teacher=student)
    vit.save(tmp_path / "vit")
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["model_args"]["depth"] == 2
    assert torch.equal(logits(load_network(f"timm:{tmp_path / 'vit'}"), PICTURES), logits(vit, PICTURES))
    resnet = load_network("timm:resnet18,img_size=32", key="student", labels=LABELS)
    part = load_network("slice:layers=0", key="student", teacher=resnet)
    part.save(tmp_path / "resnet")
    assert torch.equal(logits(load_network(f"timm:{tmp_path / 'resnet'}"), PICTURES), logits(part, PICTURES))


def test_layers_that_do_not_fit_each_other_are_refused():
    mobile = load_network("timm:mobilenetv3_small_050,img_size=32", key="student", labels=LABELS)
    with pytest.raises(UserError, match="student layers: given 0 of blocks; allowed: layers that fit"):
        load_network("slice:layers=0", key="student", teacher=mobile)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_from_a_file(student, tmp_path, ending):
    file = tmp_path / f"weights.{ending}"
    state = {name: value.contiguous() for name, value in student.module.state_dict().items()}
    save_file(state, file) if ending == "safetensors" else torch.save({"state_dict": state}, file)
    teacher = load_network(f"{VIT},pretrained_file={file}")
    assert (teacher.num_classes, teacher.pretrained) == (3, True)
    assert torch.equal(logits(teacher, PICTURES), logits(student, PICTURES))
    other = load_network(f"{VIT},pretrained_file={file}", key="student", labels=["a", "b"])
    assert logits(other, PICTURES).shape == (3, 2)
    assert any("new at random: the head" in note for note in other.notes)
    with pytest.raises(UserError, match=r"teacher weights: given .*that do not fit"):
        load_network(f"{VIT.replace('embed_dim=24', 'embed_dim=48')},pretrained_file={file}")
    with pytest.raises(UserError, match=r"teacher weights: given .* missing"):
        load_network(f"{VIT.replace('depth=3', 'depth=4')},pretrained_file={file}")


def test_pickled_weights_are_refused(tmp_path):
    file = tmp_path / "evil.pth"
    torch.save({"state_dict": {"fc.weight": print}}, file)
    with pytest.raises(UserError, match=r"teacher pretrained_file: .*without pickled objects"):
        load_network(f"timm:resnet18,pretrained_file={file}")


def test_embedding_and_regression(student, tmp_path):
    student.save(tmp_path)
    network = load_network(f"timm:{tmp_path}", task="embedding")
    assert network.forward(network.module, {"input": network.prepare(PICTURES)})["embedding"].shape == (3, 24)
    assert network.width == 24
    small = load_network(VIT, key="student", task="regression")
    assert logits(small, PICTURES).shape == (3, 1)
    with pytest.raises(UserError, match="student task: given causal-lm"):
        load_network(VIT, key="student", task="causal-lm")


def test_random_student_prepares_like_its_teacher(student):
    teacher = student
    other = load_network("timm:resnet18", key="student", teacher=teacher)
    assert other.preprocessing == teacher.preprocessing
    assert other.num_classes == 3


def test_float_images_set_size_and_channels():
    network = load_network("timm:resnet18", key="student", labels=LABELS, sample=torch.zeros(1, 28, 28))
    assert logits(network, torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    with pytest.raises(UserError, match=r"input: given \[2, 3, 28, 28\]; allowed: \[B, 1, H, W\]"):
        network.prepare(torch.zeros(2, 3, 28, 28))


def test_wrong_name_lists_near_ones():
    with pytest.raises(
        UserError, match=r"teacher: given timm:resnet19; allowed: \d+ names, the nearest are .*resnet18"
    ):
        load_network("timm:resnet19")


def test_teacher_needs_weights():
    with pytest.raises(UserError, match=r"teacher: given timm:resnet18; .*pretrained_file=FILE.*needs trained weights"):
        load_network("timm:resnet18")
    assert not load_network("timm:resnet18,pretrained=false").pretrained
    with pytest.raises(UserError, match="teacher pretrained: given maybe"):
        load_network("timm:resnet18,pretrained=maybe")


def test_weights_that_the_hub_does_not_give(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"not in the local hub cache.*no connection"):
        load_network("timm:resnet18,pretrained=true")


def test_published_weights_of_the_local_cache(monkeypatch, tmp_path):
    import huggingface_hub

    torch.manual_seed(1)
    published = timm.create_model("resnet18")
    save_file(
        {name: value.contiguous() for name, value in published.state_dict().items()}, tmp_path / "model.safetensors"
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    teacher = load_network("timm:resnet18,pretrained=true")
    assert torch.equal(teacher.module.conv1.weight, published.conv1.weight)
    assert teacher.num_classes == 1000


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"teacher: .*config\.json; it holds nothing"),
        ({"config.json": '{"architecture": "resnet18"}'}, r"a folder that holds model\.safetensors"),
        ({"config.json": '{"model_type": "bert"}'}, "write hf:"),
        ({"config.json": "{"}, "readable JSON"),
    ],
)
def test_wrong_folders(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_network(f"timm:{tmp_path}")


def test_missing_files_and_arguments():
    with pytest.raises(UserError, match="teacher pretrained_file: given /nowhere"):
        load_network("timm:resnet18,pretrained_file=/nowhere/weights.pth")
    with pytest.raises(UserError, match=r"student: .*arguments of this network.*unexpected keyword argument 'foo'"):
        load_network("timm:resnet18,foo=3", key="student", labels=LABELS)


def test_a_folder_that_timm_itself_wrote(tmp_path):
    theirs = timm.create_model("resnet10t", num_classes=3, in_chans=1).eval()
    timm.models.save_for_hf(theirs, tmp_path / "own", model_config={"label_names": ["a", "b", "c"]})
    ours = load_network(f"timm:{tmp_path / 'own'}")
    assert ours.labels == ["a", "b", "c"]
    pixels = torch.rand(2, 1, 32, 32)
    assert torch.equal(ours.module.eval()(pixels), theirs(pixels))
