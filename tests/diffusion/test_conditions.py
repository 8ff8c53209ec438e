from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.diffusion.conditions import ConditionBank
from limbeck.errors import UserError


def encode(texts: list[str]) -> Tensor:
    return torch.tensor([[float(len(text)), 1.0] for text in texts])


def test_texts_are_embedded_once_and_kept(tmp_path: Path) -> None:
    file, calls = tmp_path / "bank.safetensors", []

    def counted(texts: list[str]) -> Tensor:
        calls.append(len(texts))
        return encode(texts)

    prompts = ["a", "bb", "ccc"]
    bank = ConditionBank.encode(prompts, counted, name="lengths", batch_size=2, file=file)
    assert calls == [2, 2]
    assert bank.embeddings[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert bank.null.tolist() == [0.0, 1.0]
    again = ConditionBank.encode(prompts, counted, name="lengths", file=file)
    assert calls == [2, 2]
    assert torch.equal(again.embeddings, bank.embeddings)
    assert torch.equal(again.null, bank.null)
    for other in ({"name": "others"}, {"name": "lengths", "null": "no"}):
        with pytest.raises(UserError, match="file"):
            ConditionBank.encode(prompts, counted, file=file, **other)  # type: ignore[arg-type]


def test_a_table_ends_with_its_null_row() -> None:
    table = torch.arange(8.0).view(4, 2).requires_grad_()
    bank = ConditionBank.of_table(table)
    assert len(bank) == 3
    assert bank.null.tolist() == [6.0, 7.0]
    assert not bank.rows(torch.tensor([2, 0])).requires_grad
    batches = list(bank.loader(4, copies=4, seed=1))
    assert len(batches) == 3
    seen = torch.cat([batch["target"] for batch in batches])
    assert seen.bincount().tolist() == [4, 4, 4]
    for batch in batches:
        assert torch.equal(batch["input"], table.detach()[batch["target"]])
    with pytest.raises(UserError, match="null"):
        ConditionBank(torch.zeros(3, 2), torch.zeros(3))
