from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.importance import block_importance, important_layers
from limbeck.models.network import Network
from limbeck.models.references import load_network
from tests.models.tiny import TEXTS, save_chat_llama


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Network:
    network = load_network(f"hf:{save_chat_llama(tmp_path_factory.mktemp('llama'))}", task="causal-lm")
    layers = network.module.model.layers  # type: ignore[union-attr]
    with torch.no_grad():
        # The third block adds nothing; the second adds more than the others.
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            layers[2].get_submodule(name).weight.zero_()  # type: ignore[index]
            layers[1].get_submodule(name).weight.mul_(20)  # type: ignore[index]
    return network


@pytest.mark.parametrize("measure", ["influence", "loss"])
def test_a_block_that_does_nothing_matters_least(teacher: Network, measure: str) -> None:
    scores = block_importance(teacher, TEXTS, measure)
    assert abs(scores[2]) < 1e-6
    assert max(map(abs, scores)) == abs(scores[1]) > 1e-3
    assert not any(block._forward_hooks for block in teacher.module.model.layers)  # type: ignore[union-attr]


def test_influence_is_the_mean_over_real_positions(teacher: Network) -> None:
    alone = [block_importance(teacher, [text])[1] for text in TEXTS]
    lengths = [int(teacher.prepare([text])["attention_mask"].sum()) for text in TEXTS]
    want = sum(score * length for score, length in zip(alone, lengths)) / sum(lengths)
    assert block_importance(teacher, TEXTS)[1] == pytest.approx(want, rel=1e-4)


def test_the_most_important_in_their_own_order() -> None:
    assert important_layers([0.1, 0.5, 0.1, 0.9], 2) == [1, 3]
    assert important_layers([0.1, 0.5, 0.1, 0.9], 3) == [0, 1, 3]


def test_students_of_important_layers(teacher: Network) -> None:
    student = load_network("slice:layers=important:3", key="student", teacher=teacher, samples=TEXTS)
    assert student.module.config.num_hidden_layers == 3  # type: ignore[union-attr]
    assert any("layers 0, 1, 3" in note for note in student.notes)
    assert any("1 - cos(input, output)" in note and "2: " in note for note in student.notes)
    embedding, head = student.module.get_input_embeddings(), student.module.get_output_embeddings()  # type: ignore[operator]
    assert embedding.weight is head.weight


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("slice:layers=important:9", "COUNT from 1 to 4"),
        ("slice:layers=important:2:size", "important:COUNT:loss"),
        ("slice:layers=important", "important:COUNT"),
    ],
)
def test_refused(teacher: Network, reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_network(reference, key="student", teacher=teacher, samples=TEXTS)
    with pytest.raises(UserError, match="there are no samples to measure on"):
        load_network("slice:layers=important:2", key="student", teacher=teacher)
