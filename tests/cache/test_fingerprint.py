from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from limbeck.cache import (
    fingerprint_file,
    fingerprint_module,
    fingerprint_of,
    fingerprint_tensors,
    fingerprint_text,
    fingerprint_tokenizer,
)
from limbeck.errors import UserError
from tests.cache.helpers import build

ROOT = Path(__file__).parents[2]


def test_same_content_same_hash_in_another_process() -> None:
    code = "from limbeck.cache import *; from tests.cache.helpers import build; "
    code += "print(fingerprint_module(build()), fingerprint_text({'b': {3, 1, 2}, 'a': ['x', None, 0.1]}))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PYTHONPATH": ":".join(map(str, (ROOT, *sys.path))),
            "PYTHONHASHSEED": "7",
            "OMP_NUM_THREADS": "1",
        },
    ).stdout.split()
    assert printed == [fingerprint_module(build()), fingerprint_text({"a": ["x", None, 0.1], "b": {1, 2, 3}})]


def test_use_and_mode_do_not_change_a_module() -> None:
    module = build()
    before = fingerprint_module(module)
    module.eval()
    module(torch.randn(5, 4))
    module.requires_grad_(False)
    assert fingerprint_module(module) == before
    assert fingerprint_module(torch.compile(module, backend="eager")) == before
    assert fingerprint_module(nn.DataParallel(module)) == before


def test_everything_that_decides_the_answer_changes_it() -> None:
    plain = fingerprint_module(build())
    variants = [build(seed=1), build(heads=4), build(epsilon=1e-6), build(activation="gelu")]
    variants.append(build().double())
    changed = build()
    with torch.no_grad():
        changed[3].bias[1] += 1e-6
    variants.append(changed)
    statistics = build()
    statistics[1].running_mean[0] = 1e-3
    variants.append(statistics)
    found = {fingerprint_module(module) for module in variants}
    assert len(found) == len(variants)
    assert plain not in found


def test_order_counts_where_it_is_computed_and_nowhere_else() -> None:
    first, second = nn.Linear(3, 3), nn.Tanh()

    def sequence(*names: str) -> nn.Sequential:
        module = nn.Sequential()
        for name in names:
            module.add_module(name, {"linear": first, "tanh": second}[name])
        return module

    assert fingerprint_module(sequence("linear", "tanh")) != fingerprint_module(sequence("tanh", "linear"))
    one, other = nn.ModuleDict({"a": first, "b": second}), nn.ModuleDict({"b": second, "a": first})
    assert fingerprint_module(one) == fingerprint_module(other)
    tensors = {"x": torch.arange(3), "y": torch.ones(2)}
    assert fingerprint_tensors(tensors) == fingerprint_tensors(dict(reversed(tensors.items())))


def test_tensors_count_by_name_type_shape_and_bytes() -> None:
    base = torch.arange(6, dtype=torch.float32)
    kinds = [{"x": base}, {"y": base}, {"x": base.double()}, {"x": base.view(2, 3)}, {"x": base.view(3, 2)}]
    kinds += [{"x": base.bfloat16()}, {"x": base, "y": base}, {"x": base + 1e-6}, {"x": base[:0]}, {}]
    assert len({fingerprint_tensors(kind) for kind in kinds}) == len(kinds)
    strided = torch.stack([base, base], 1)[:, 0]
    assert fingerprint_tensors({"x": strided}) == fingerprint_tensors({"x": base})
    with pytest.raises(UserError, match="meta"):
        fingerprint_tensors({"x": torch.empty(3, device="meta")})


def test_descriptions() -> None:
    values = [None, True, 1, 1.0, "1", [1], {"1": 1}, {1: 1}, b"1", {1}, torch.ones(1), [[1]], [], {}]
    assert len({fingerprint_text(value) for value in values}) == len(values)
    assert fingerprint_text({"a": 1, "b": (2, 3)}) == fingerprint_text({"b": [2, 3], "a": 1})
    assert fingerprint_text(numpy.ones(3, numpy.float32)) == fingerprint_text(torch.ones(3))
    assert fingerprint_text(numpy.float64(0.5), torch.float16) == fingerprint_text(0.5, "torch.float16")
    with pytest.raises(UserError, match=r"description\[0\]\.resize\[1\].*function"):
        fingerprint_text({"resize": [224, test_descriptions]})


def test_tokenizers_by_content() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    def tokenizer(words: list[str], lower: bool = False) -> Tokenizer:
        made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace() if lower else pre_tokenizers.WhitespaceSplit()
        return made

    words = ["[UNK]", "still", "spirit", "wine"]
    base = tokenizer(words)
    before = fingerprint_tokenizer(base)
    base.enable_truncation(4)
    base.enable_padding()
    assert fingerprint_tokenizer(base) == before == fingerprint_tokenizer(tokenizer(words))
    others = [
        tokenizer([words[0], words[2], words[1], words[3]]),
        tokenizer(words[:3]),
        tokenizer(words, lower=True),
    ]
    found = {before, *(fingerprint_tokenizer(other) for other in others)}
    assert len(found) == 4
    vocabulary = {"a": 0, "b": 1}
    assert fingerprint_tokenizer(vocabulary) == fingerprint_tokenizer({"b": 1, "a": 0})
    with pytest.raises(UserError, match="tokenizer"):
        fingerprint_tokenizer(3)


def test_parts_of_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"abc")
    parts = fingerprint_of(teacher=build(), preprocessing={"size": 32}, data=path, tokenizer=None)
    assert parts == {
        "teacher": fingerprint_module(build()),
        "preprocessing": fingerprint_text("preprocessing", {"size": 32}),
        "data": fingerprint_file(path),
    }
    assert parts["data"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
