"""Exports on tiny networks: what passes must run elsewhere, what is wrong must fail and leave nothing."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.export import ExportError, export
from limbeck.export import onnx as onnx_room

FORMATS = ["onnx", "pt2"]


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image))


class Doubled(nn.Module):
    """Says something else once it is exported, as a wrong rewrite for the tracer does."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (self.factor if torch.compiler.is_exporting() else 1.0)


class Tied(nn.Module):
    """Takes the batch size of the moment for a constant, without the tracer noticing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = 2 if torch.compiler.is_exporting() else len(x)
        return x.mean(dim=0, keepdim=True).expand(rows, -1) * 2


class Fixed(nn.Module):
    """Works on one batch size in the graph: the tracer itself refuses a free axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.eye(int(x.shape[0]), x.shape[1])


@pytest.fixture(scope="module")
def bert():
    import transformers

    torch.manual_seed(0)
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )


def tokens(rows: int = 5, length: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 50, (rows, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([[length - row] for row in range(rows)])
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("to", FORMATS)
def test_bert_runs_elsewhere_at_other_batches_and_lengths(bert, to, tmp_path, capfd, caplog):
    bert.train()
    with caplog.at_level(logging.WARNING):
        report = export(bert, tokens(), tmp_path / f"bert.{to}", to, outputs=["last_hidden_state"])
    assert bert.training
    assert all(module.training for module in bert.modules())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert not caplog.records
    assert [file.name for file in tmp_path.iterdir()] == [f"bert.{to}"]
    assert report.bytes == report.path.stat().st_size
    assert {(check.batch, check.length) for check in report.parity} == {
        (batch, length) for batch in (1, 3, 8) for length in (12, 6, 3)
    }
    assert report.worst.max_relative_difference <= report.tolerance == 1e-4
    assert report.outputs == ["last_hidden_state"]

    other = tokens(rows=7, length=20)
    bert.eval()
    with torch.no_grad():
        wanted = bert(**other).last_hidden_state
    if to == "onnx":
        onnx.checker.check_model(str(report.path))
        session = onnxruntime.InferenceSession(str(report.path))
        assert [value.shape for value in session.get_inputs()] == [["batch", "sequence"]] * 2
        assert session.get_outputs()[0].shape == ["batch", "sequence", 16]
        given = torch.from_numpy(session.run(None, {name: value.numpy() for name, value in other.items()})[0])
    else:
        with torch.no_grad():
            given = torch.export.load(report.path).module()(**other)["last_hidden_state"]
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("to", FORMATS)
def test_convolution_left_in_training_mode_is_exported_in_evaluation_mode(to, tmp_path):
    torch.manual_seed(0)
    network = Convolutional()
    network(torch.randn(16, 1, 6, 6) * 3 + 1)
    network.train()
    network.body[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = export(network, torch.randn(8, 1, 6, 6), tmp_path, to)
    assert report.path == tmp_path / f"model.{to}"
    assert network.training
    assert network.body[3].training
    assert not network.body[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert report.inputs == {"input": ["batch", 1, 6, 6]}
    assert report.outputs == ["logits"]
    assert [check.length for check in report.parity] == [None] * 3


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("factor", [1.01, -1.0, float("nan")])
def test_a_wrong_export_fails_and_leaves_nothing(to, factor, tmp_path):
    with pytest.raises(ExportError, match="NaN" if factor != factor else "worst difference"):
        export(Doubled(factor), torch.randn(4, 4), tmp_path / "wrong", to)
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_the_worst_difference(tmp_path):
    network = Doubled(2.0)
    nn.init.zeros_(network.linear.weight)
    nn.init.constant_(network.linear.bias, 3.0)
    with pytest.raises(ExportError, match=r"difference is 3 \(1 of the largest value.*'logits' at batch 1"):
        export(network, torch.randn(4, 4), tmp_path / "wrong.onnx")


def test_small_outputs_are_not_excused_by_an_absolute_bound(tmp_path):
    network = Doubled(1.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e-2)
    with pytest.raises(ExportError, match="worst difference"):
        export(network, torch.randn(4, 4), tmp_path / "small.pt2", "pt2")


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_tied_to_one_batch_size_is_refused(to, tmp_path):
    with pytest.raises(ExportError, match="tied to one batch size"):
        export(Tied(), torch.randn(8, 4), tmp_path / "tied", to)
    with pytest.raises(ExportError, match="cannot trace"):
        export(Fixed(), torch.randn(8, 4), tmp_path / "fixed", to)
    assert list(tmp_path.iterdir()) == []


def test_a_nan_of_the_network_itself_is_refused(tmp_path):
    network = nn.Linear(4, 2)
    nn.init.constant_(network.bias, float("nan"))
    with pytest.raises(ExportError, match="of the network holds NaN"):
        export(network, torch.randn(4, 4), tmp_path / "nan.pt2", "pt2")


def test_a_lost_attention_mask_is_found_on_samples_without_padding(tmp_path):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            weight = attention_mask.unsqueeze(-1).float()
            if torch.compiler.is_exporting():
                weight = torch.ones_like(weight)
            return (self.table(input_ids) * weight).sum(dim=1)

    samples = tokens()
    samples["attention_mask"] = torch.ones_like(samples["attention_mask"])
    with pytest.raises(ExportError, match="worst difference"):
        export(Masked(), samples, tmp_path / "mask.pt2", "pt2")


def test_equal_infinities_and_integer_outputs_agree(tmp_path):
    class Masking(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x.masked_fill(x < 0, -torch.inf), "best": x.argmax(dim=-1), "note": None}

    report = export(Masking(), torch.randn(8, 5), tmp_path / "masking.onnx")
    assert report.outputs == ["logits", "best"]
    assert report.worst.max_abs_difference == 0.0


def test_a_failed_export_leaves_the_earlier_file_and_a_good_one_replaces_it(tmp_path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"earlier")
    (tmp_path / "model.onnx.data").write_bytes(b"weights of the earlier one")
    with pytest.raises(ExportError):
        export(Doubled(2.0), torch.randn(4, 4), target)
    assert target.read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 2
    export(Doubled(1.0), torch.randn(4, 4), target)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(target))


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_room, "LARGEST_SINGLE_FILE", 1000)
    report = export(nn.Linear(64, 64), torch.randn(8, 64), tmp_path / "large.onnx")
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(files) == {"large.onnx", "large.onnx.data"}
    assert report.bytes == sum(files.values())
    samples = np.ones((2, 64), dtype=np.float32)
    assert onnxruntime.InferenceSession(str(report.path)).run(None, {"input": samples})[0].shape == (2, 64)


def test_fused_attention_layers_can_be_exported(tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    report = export(layer, torch.randn(8, 5, 8), tmp_path / "layer.onnx")
    assert report.worst.max_relative_difference <= 1e-4


def test_a_lone_token_tensor_has_a_free_length(tmp_path):
    network = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 3))
    report = export(network, tokens()["input_ids"], tmp_path / "tokens.pt2", "pt2", lengths=[7, 2])
    assert {check.length for check in report.parity} == {7, 2}
    table = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(ExportError, match="sequence=None"):
        export(table, tokens()["input_ids"], tmp_path / "table.pt2", "pt2")
    fixed = export(table, tokens()["input_ids"], tmp_path / "table.pt2", "pt2", sequence=None)
    assert fixed.inputs == {"input": ["batch", 12]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tflite"}, "to: given tflite; allowed: onnx, pt2"),
        ({"outputs": ["embeding"]}, "outputs: given embeding; allowed: logits"),
        ({"lengths": [4]}, "lengths"),
        ({"sample_inputs": {}}, "sample_inputs"),
        ({"sample_inputs": {"a": torch.ones(2, 4), "b": torch.ones(3, 4)}}, "same number"),
    ],
)
def test_wrong_arguments_are_named(options, message, tmp_path):
    arguments = {"sample_inputs": torch.randn(4, 4), "out": tmp_path / "x", **options}
    with pytest.raises(UserError, match=message):
        export(nn.Linear(4, 2), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match="cannot write"):
        export(nn.Linear(4, 2), torch.randn(4, 4), tmp_path / "file" / "model.onnx")


def test_integers_must_be_equal(tmp_path):
    class Identifiers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(dim=-1) + (30001 if torch.compiler.is_exporting() else 30000)

    with pytest.raises(ExportError, match="worst difference is 1 "):
        export(Identifiers(), torch.randn(4, 4), tmp_path / "x.pt2", "pt2")


def test_names_of_outputs_survive_whatever_the_graph_calls_its_values(tmp_path):
    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            linear = self.table(input_ids).mean(dim=1)
            embedding = linear * 2
            return {"mean": embedding, "embedding": embedding, "mul": linear, "input": input_ids}

    report = export(Names(), {"input_ids": tokens()["input_ids"]}, tmp_path / "names.onnx")
    session = onnxruntime.InferenceSession(str(report.path))
    assert [value.name for value in session.get_outputs()] == ["mean", "embedding", "mul", "input"]
    onnx.checker.check_model(str(report.path), full_check=True)
