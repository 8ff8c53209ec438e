from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.nn.transfer import WeightTransfer, blend, copy_state, keep_layers, shadow_of, slice_width
from limbeck.schedules import Linear


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.999, 1.0])
def test_a_moving_average_follows_its_formula(momentum: float) -> None:
    source, target = net(0), net(1)
    expected = {name: tensor.double() for name, tensor in target.named_parameters()}
    transfer = WeightTransfer(source, target, momentum=momentum)
    for step in range(5):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        transfer()
        for name, tensor in source.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * tensor.double()
    for name, tensor in target.named_parameters():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    if momentum == 0.0:
        assert same(source, target)


def test_a_momentum_schedule_follows_progress() -> None:
    source, target = net(0), net(1)
    start = copy_state(target)
    transfer = WeightTransfer(source, target, momentum=Linear(1.0, 0.0), buffers="keep")
    transfer(0.0)
    assert torch.equal(target[0].weight, start["0.weight"])
    transfer(1.0)
    assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize("policy", ["copy", "blend", "keep"])
def test_buffer_policies(policy: str) -> None:
    source, target = net(0), net(1)
    source(torch.randn(32, 4) * 3 + 1)
    before = copy_state(target)
    WeightTransfer(source, target, momentum=0.75, buffers=policy)()
    share = {"copy": 1.0, "blend": 0.25, "keep": 0.0}[policy]
    expected = before["1.running_mean"] + share * (source[1].running_mean - before["1.running_mean"])
    torch.testing.assert_close(target[1].running_mean, expected)
    assert int(target[1].num_batches_tracked) == (0 if policy == "keep" else 1)


def test_kept_buffers_need_no_counterpart() -> None:
    source = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3))
    with pytest.raises(UserError, match="weight 1.running_mean"):
        WeightTransfer(source, net())
    WeightTransfer(source, net(), buffers="keep")()


@pytest.mark.parametrize("kind", ["mapping", "function"])
def test_a_name_map_joins_networks_that_are_built_differently(kind: str) -> None:
    source = nn.ModuleDict({"body": nn.Linear(4, 6), "extra": nn.Linear(2, 2)})
    target = net()
    last = target[2].weight.clone()
    names: Any = {"0.weight": "body.weight", "0.bias": "body.bias"}
    WeightTransfer(source, target, names=names if kind == "mapping" else names.get, momentum=0.0)()
    assert torch.equal(target[0].weight, source["body"].weight)
    assert torch.equal(target[2].weight, last)


def test_wrong_names_and_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"weight 0.weight: given body.weigt; allowed: body.weight"):
        WeightTransfer(
            nn.ModuleDict({"body": nn.Linear(4, 6)}), net(), names=lambda n: "body.weigt" if "0.w" in n else None
        )
    with pytest.raises(UserError, match=r"names: given 0.wait; allowed: 0.weight"):
        WeightTransfer(net(), net(), names={"0.wait": "0.weight"})
    with pytest.raises(UserError, match="names: given a map that matches nothing"):
        WeightTransfer(net(), net(), names=lambda name: None)
    with pytest.raises(UserError, match=r"weight 0.weight: given \[5, 4\]; allowed: a tensor of shape \[6, 4\]"):
        WeightTransfer(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(6), nn.Linear(6, 3)), net())
    with pytest.raises(UserError, match="buffers: given move; allowed: copy, blend, keep"):
        WeightTransfer(net(), net(), buffers="move")


def test_tensors_that_were_replaced_are_found_again() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.register_buffer("centre", torch.zeros(2))

    source, target = Centred(), Centred()
    transfer = WeightTransfer(source, target)
    source.centre = source.centre + 1
    source.weight = nn.Parameter(torch.ones(2))
    target.centre = target.centre - 1
    transfer()
    assert torch.equal(target.centre, torch.ones(2))
    assert torch.equal(target.weight, torch.ones(2))


def test_tied_weights_move_once() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["embedding"].weight
        return model

    source, target = tied(), tied()
    expected = 0.5 * source["head"].weight + 0.5 * target["head"].weight
    WeightTransfer(source, target, momentum=0.5)()
    torch.testing.assert_close(target["embedding"].weight, expected)
    assert target["embedding"].weight is target["head"].weight


def test_an_average_may_be_more_precise_than_its_student() -> None:
    source, target = net(0).bfloat16(), net(1)
    expected = 0.9 * target[0].weight + 0.1 * source[0].weight.float()
    WeightTransfer(source, target, momentum=0.9)()
    assert target[0].weight.dtype == torch.float32
    torch.testing.assert_close(target[0].weight, expected)


def test_complex_weights_are_averaged_too() -> None:
    source, target = nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2, dtype=torch.complex64)
    expected = 0.5 * source.weight + 0.5 * target.weight
    WeightTransfer(source, target, momentum=0.5)()
    torch.testing.assert_close(target.weight, expected)


def test_a_blend_is_the_weighted_mean() -> None:
    one, two = net(0), net(1)
    two(torch.randn(8, 4))
    mixed = blend([one, two], [3, 1])
    torch.testing.assert_close(mixed[0].weight, 0.75 * one[0].weight + 0.25 * two[0].weight)
    assert int(mixed[1].num_batches_tracked) == 0
    torch.testing.assert_close(blend([one, two])[2].bias, (one[2].bias + two[2].bias) / 2)
    assert same(blend([one]), one)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_a_blend_refuses_bad_weights(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights"):
        blend([net(0), net(1)], weights)


def test_a_blend_refuses_other_networks() -> None:
    with pytest.raises(UserError, match="at least one network"):
        blend([])
    with pytest.raises(UserError, match=r"models: 0.weight of network 1: given \[5, 4\]"):
        blend([net(), nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(6), nn.Linear(6, 3))])
    with pytest.raises(UserError, match=r"models: .* of network 1: given missing"):
        blend([net(), nn.Sequential(nn.Linear(4, 6))])


def test_a_shadow_is_frozen_and_apart() -> None:
    model = net()
    shadow = shadow_of(model)
    assert not shadow.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in shadow.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert shadow[0].weight.abs().sum() > 0


SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=30, max_position_embeddings=16, **SIZES))


def vit() -> Any:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(image_size=8, patch_size=4, num_channels=1, **SIZES))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=8, n_head=2, vocab_size=30, n_positions=16))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=1, **SIZES))


def gemma() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    sizes = {**SIZES, "head_dim": 4, "num_key_value_heads": 1}
    return Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=30, layer_types=kinds, sliding_window=2, **sizes))


TOKENS = {"input_ids": torch.arange(10).view(2, 5)}
PIXELS = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(("build", "given"), [(bert, TOKENS), (vit, PIXELS), (gpt2, TOKENS), (llama, TOKENS),
                                              (gemma, TOKENS)])  # fmt: skip
@pytest.mark.parametrize("layers", [[0, -1], [1, 1, 2]])
def test_kept_layers_save_and_open_in_transformers(
    build: Callable[[], Any], given: dict[str, Tensor], layers: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    before = model(**given)[0]
    student = keep_layers(model, layers)
    student.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == len(layers)
    with torch.no_grad():
        expected = student(**given)[0]
        assert torch.equal(expected, again(**given)[0])
        assert torch.equal(model(**given)[0], before)
    assert model.config.num_hidden_layers == 4
    assert not torch.equal(expected, before)
    if hasattr(model, "generate") and given is TOKENS and not isinstance(model, type(bert())):
        # The key-value cache is indexed by a layer's own number.
        options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        cached = student.generate(**given, use_cache=True, **options)
        assert torch.equal(cached, student.generate(**given, use_cache=False, **options))


def test_all_layers_kept_are_the_same_function() -> None:
    model = llama().eval()
    assert torch.equal(keep_layers(model, [0, 1, 2, 3])(**TOKENS)[0], model(**TOKENS)[0])


def test_kept_layer_types_follow_their_layers() -> None:
    student = keep_layers(gemma(), [1, 3])
    assert student.config.layer_types == ["full_attention", "full_attention"]


def test_a_layer_asked_for_twice_does_not_share_its_weights() -> None:
    student = keep_layers(bert(), [2, 2])
    first, second = (layer.output.dense.weight for layer in student.encoder.layer)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_layers_of_a_network_that_is_itself_the_stack() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
    student = keep_layers(model, [0, 3])
    assert torch.equal(student(torch.ones(1, 3)), model[3](model[0](torch.ones(1, 3))))
    named = nn.Sequential(OrderedDict((name, nn.Linear(3, 3)) for name in ("first", "second", "third")))
    assert list(dict(keep_layers(named, [0, 2, 2]).named_children())) == ["first", "third", "third_2"]


def test_another_tower_keeps_its_configuration() -> None:
    from transformers import CLIPConfig, CLIPModel

    tower: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 30, "num_hidden_layers": 3, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**tower, "hidden_size": 16, "image_size": 8, "patch_size": 4, "num_hidden_layers": 3}
    student = keep_layers(CLIPModel(CLIPConfig(text_config=text, vision_config=vision)), [0, 2])
    assert student.config.vision_config.num_hidden_layers == 2
    assert student.config.text_config.num_hidden_layers == 3


@pytest.mark.parametrize("layers", [[], [4], [-5], [0, 9]])
def test_layers_that_do_not_exist_are_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match="layers: given .*one or more of 0 to 3"):
        keep_layers(bert(), layers)


def test_networks_whose_layers_cannot_be_dropped_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=30))
    with pytest.raises(UserError, match="a stack of 2 in T5ForConditionalGeneration.*take the encoder or the decoder"):
        keep_layers(t5, [0])
    assert t5.config.num_layers == 2
    with pytest.raises(UserError, match="parts without weights"):
        keep_layers(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), [0])


def test_slices_of_a_wide_network_whose_other_units_are_zero_are_the_same_function() -> None:
    from transformers import BertConfig, BertModel

    def with_inner(width: int) -> Any:
        sizes = {**SIZES, "intermediate_size": width}
        return BertModel(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)).eval()

    torch.manual_seed(0)
    for choose, kept in (("leading", torch.arange(8)), ("even", torch.arange(0, 16, 2))):
        wide, narrow = with_inner(16), with_inner(8)
        silent = torch.ones(16, dtype=torch.bool)
        silent[kept] = False
        with torch.no_grad():
            for layer in wide.encoder.layer:
                layer.output.dense.weight[:, silent] = 0.0
        assert slice_width(wide, narrow, choose=choose) is narrow
        torch.testing.assert_close(narrow(**TOKENS)[0], wide(**TOKENS)[0])


def test_axes_of_one_length_pair_take_the_same_positions() -> None:
    torch.manual_seed(0)
    wide, narrow = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    slice_width(wide, narrow)
    assert torch.equal(narrow[0].weight, wide[0].weight[::2])
    assert torch.equal(narrow[0].bias, wide[0].bias[::2])
    assert torch.equal(narrow[1].weight, wide[1].weight[:, ::2])
    assert torch.equal(narrow[1].bias, wide[1].bias)


def test_even_slices_of_queries_keys_and_values_in_one_tensor_stay_with_their_part() -> None:
    wide, narrow = nn.Linear(12, 36), nn.Linear(4, 12)
    slice_width(wide, narrow)
    for part in range(3):
        assert torch.equal(narrow.bias[part * 4 : part * 4 + 4], wide.bias[part * 12 : part * 12 + 12 : 3])


def test_slices_that_cannot_be_are_refused_before_anything_changes() -> None:
    wide, narrow = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 6))
    before = narrow[0].weight.clone()
    with pytest.raises(UserError, match=r"width of 1.weight: given \[6, 2\]; allowed: at most \[3, 4\]"):
        slice_width(wide, narrow)
    assert torch.equal(narrow[0].weight, before)
    with pytest.raises(UserError, match="no tensor has a namesake"):
        slice_width(nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.Linear(2, 2))
    with pytest.raises(UserError, match="choose: given odd"):
        slice_width(wide, wide, choose="odd")
