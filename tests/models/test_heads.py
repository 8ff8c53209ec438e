from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from limbeck.errors import UserError
from limbeck.language import Sequences, answer_logits, check_head
from limbeck.models.heads import read_head
from limbeck.nn.output_head import OutputHead

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BATCH = Sequences.pad([[3, 4, 5], [6, 7]], [[8, 9], [10, 11, 12]], pad=0).batch()

KINDS: dict[str, Any] = {
    "llama, its own head": lambda: transformers.LlamaConfig(**SMALL),
    "llama, tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gemma 2, capped": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.05),
    "cohere, scaled": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.07),
    "granite, divided": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=13.0),
    "phi, with a bias": lambda: transformers.PhiConfig(**SMALL),
    "gpt-2": lambda: transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40, word_embed_proj_dim=8
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_a_folder_is_the_models(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(tmp_path)
    head, own = read_head(tmp_path), OutputHead.of(model)
    assert torch.equal(head.weight, own.weight)
    assert (head.bias is None) == (own.bias is None)
    assert (head.scale, head.cap) == (own.scale, own.cap)
    assert (head.bias is not None) == ("bias" in kind)
    assert check_head(model, BATCH, head) <= 1e-5 * float(answer_logits(model, BATCH)["logits"].detach().abs().max())


def test_a_head_that_is_not_the_models_is_found_out() -> None:
    config = KINDS["gemma 2, capped"]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    own = OutputHead.of(model)
    with pytest.raises(UserError, match="head: given logits that differ by"):
        check_head(model, BATCH, OutputHead(own.weight, own.bias))
    with pytest.raises(UserError, match="model: given Linear"):
        OutputHead.of(torch.nn.Linear(2, 2))


def test_folders_without_one_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder of transformers with config.json"):
        read_head(tmp_path)
    transformers.LlamaConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a folder with \*.safetensors"):
        read_head(tmp_path)
    safetensors.torch.save_file({"model.norm.weight": torch.ones(16)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"0 tensors that could be the head \(none\).*\*.lm_head.weight"):
        read_head(tmp_path)
    safetensors.torch.save_file({"lm_head.weight": torch.ones(41, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight: given \[41, 16\]; allowed: \[40, width\]"):
        read_head(tmp_path)


def test_a_head_in_one_of_several_files_is_found(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(KINDS["llama, its own head"]())
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(read_head(tmp_path).weight, model.lm_head.weight)
    assert read_head(tmp_path, dtype=torch.bfloat16).weight.dtype == torch.bfloat16
