"""Cost: exact counts exactly, times by calls whose relative cost is known."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError, UserError
from limbeck.measure import (
    compare_latency,
    compare_throughput,
    cost_summary,
    flops,
    forward_call,
    latency,
    parameters,
    peak_memory,
    state_bytes,
    token_layers,
    watched_memory,
)


def test_parameters_and_bytes_count_shared_tensors_once():
    network = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False), nn.BatchNorm1d(10))
    network[1].weight = network[0].weight
    network[2].requires_grad_(False)
    assert parameters(network) == {"parameters": 60, "trainable": 40}
    # 40 + 20 parameters, 20 running statistics, all of 4 bytes, and one counter of 8.
    assert state_bytes(network) == 60 * 4 + 20 * 4 + 8
    network[2].register_buffer("scratch", torch.zeros(100), persistent=False)
    assert state_bytes(network) == 60 * 4 + 20 * 4 + 8
    assert state_bytes(nn.Linear(3, 2).half()) == 8 * 2
    assert state_bytes(nn.Linear(3, 2, device="meta")) == 8 * 4
    with pytest.raises(UserError, match="lazy"):
        parameters(nn.LazyLinear(3))


@pytest.mark.parametrize("batch", [1, 5])
def test_flops_of_a_linear_layer_are_exact(batch):
    assert flops(nn.Linear(10, 20), torch.randn(batch, 10)) == 2 * 10 * 20
    assert flops(nn.Linear(10, 20), {"input": torch.randn(batch, 7, 10)}) == 7 * 2 * 10 * 20


def test_flops_of_fused_kernels_are_seen():
    heads = nn.MultiheadAttention(16, 2, batch_first=True)
    projections, scores = 2 * 6 * 16 * 64, 2 * 2 * 6 * 6 * 16
    tokens = torch.randn(3, 6, 16)
    assert flops(heads, {"query": tokens, "key": tokens, "value": tokens}) == projections + scores
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    layer.eval()
    assert flops(layer, tokens) == projections + scores + 2 * 2 * 6 * 16 * 32
    assert flops(nn.LSTM(8, 16, batch_first=True), torch.randn(3, 5, 8)) == 2 * 5 * 4 * 16 * 24
    assert flops(nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 10, 10)) == 2 * 100 * 27 * 8
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_flops_of_a_transformers_network_are_those_of_its_layers():
    import transformers

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    network = transformers.BertModel(config, add_pooling_layer=False)
    ones = torch.ones(4, 6, dtype=torch.long)
    inputs = {"input_ids": ones, "attention_mask": ones}
    layer = 2 * 6 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 6 * 6 * 16
    assert flops(network, inputs) == 3 * layer


def test_counting_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    network.train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = cost_summary(network, torch.randn(2, 4))
    assert found == {"parameters": 28, "trainable": 28, "bytes": 28 * 4 + 8 * 4 + 8, "flops": 32.0}
    assert network.training
    assert not network[1].training
    assert network[2].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(UserError, match="inputs"):
        flops(network, torch.randn(0, 4))


def test_latency_is_in_milliseconds_and_interleaved():
    order = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.012)

    def fast() -> None:
        order.append("fast")
        time.sleep(0.003)

    found = compare_latency({"slow": slow, "fast": fast}, rounds=8, warmup=1)
    assert list(found) == ["slow", "fast"]
    assert order[2:] == ["slow", "fast", "fast", "slow"] * 4
    assert 12 <= found["slow"].p50_ms < 1000
    assert 3 <= found["fast"].p50_ms < 1000
    assert found["slow"].speedup == 1.0
    assert found["fast"].speedup > 1.5
    assert found["fast"].p95_ms >= found["fast"].p50_ms
    assert found["fast"].runs == 8


def test_a_time_limit_ends_the_rounds():
    found = latency(lambda: time.sleep(0.01), rounds=1000, warmup=0, seconds=0.05)
    assert 3 <= found.runs < 20
    with pytest.raises(UserError, match="at least one call"):
        compare_latency({})


def test_throughput_is_samples_over_time():
    found = compare_throughput({"a": lambda: time.sleep(0.01)}, batch=50, rounds=5)["a"]
    assert 50 < found.samples_per_second <= 5000
    assert found.batch == 50


def test_a_forward_call_keeps_no_graph():
    output = forward_call(nn.Linear(2, 2), {"input": torch.ones(1, 2)})()
    assert output.is_inference()


def allocate(megabytes: int) -> None:
    block = torch.ones(megabytes, 1024, 1024, dtype=torch.uint8)
    del block


def fail() -> None:
    raise ValueError("no such file")


def test_peak_memory_of_a_process_of_its_own():
    found = peak_memory(allocate, 200)
    assert 195 << 20 <= found.growth <= 260 << 20
    assert found.kind == "rss"
    assert found.peak > found.baseline > 0
    with pytest.raises(LimbeckError, match="ValueError: no such file"):
        peak_memory(fail)
    with pytest.raises(UserError, match="top of a module"):
        peak_memory(lambda: None)


def test_peak_memory_of_a_stretch_of_this_process():
    with watched_memory() as found:
        allocate(200)
    with watched_memory() as after:
        pass
    assert 195 << 20 <= found[0].growth <= 260 << 20
    assert after[0].growth < 50 << 20, "an earlier peak is forgotten"


def test_token_layers_count_what_runs():
    from limbeck.models.vit import ViT
    from limbeck.nn.patches import masking
    from limbeck.taps import Taps

    model, images = ViT(16, 4, width=8, depth=4, heads=2), torch.randn(3, 1, 16, 16)
    assert token_layers(lambda: model(images), model) == 3 * 17 * 4
    keep = masking(torch.rand(3, 16), 0.75).keep
    assert token_layers(lambda: model(images, keep), model) == 3 * 5 * 4
    taps = Taps(model, {"mid": "blocks.1"})

    def partial():
        with taps.capture(until=("mid",)):
            model(images, keep)

    assert token_layers(partial, model) == 3 * 5 * 2
    assert token_layers(lambda: model(images), model, layers="blocks.0") == 3 * 17
    assert not model.blocks[0]._forward_pre_hooks
