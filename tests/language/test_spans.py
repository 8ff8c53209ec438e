from __future__ import annotations

import pytest
import torch

from limbeck.data.views import view_seeds
from limbeck.errors import UserError
from limbeck.language import FunctionWordSpans, RandomSpans, WindowSpans, pieces_of
from limbeck.objectives import same_span

PIECES = ["<pad>", " return", " the", " mean", " of", " ar", "ray", " in", "put", " .", "<end>"]


def spans_of(words: list[str], *, padded: int = 0) -> list[list[int]]:
    tokens = torch.tensor([[PIECES.index(word) for word in words] + [0] * padded])
    mask = torch.tensor([[True] * len(words) + [False] * padded])
    return FunctionWordSpans(PIECES, special=(0, 10))(tokens, mask, None).tolist()


def test_phrases_begin_at_function_words() -> None:
    assert spans_of([" return", " the", " mean", " of", " the", " ar", "ray"]) == [[0, 1, 1, 2, 2, 2, 2]]


def test_words_of_several_tokens_are_whole() -> None:
    # "in" is a preposition, "input" is not.
    assert spans_of([" mean", " in", " ar", "ray"]) == [[0, 1, 1, 1]]
    assert spans_of([" mean", " in", "put"]) == [[0, 0, 0]]


def test_punctuation_padding_and_special_tokens_belong_to_none() -> None:
    assert spans_of([" mean", " .", " mean", "<end>"], padded=2) == [[0, -1, 1, -1, -1, -1]]


def test_pairs_never_cross_a_border() -> None:
    numbers = torch.tensor([[0, 0, 1, -1, -1, 2, 2]])
    assert same_span(numbers).tolist() == [[True, False, False, False, False, True]]


def test_windows_and_random_pieces() -> None:
    tokens, mask = torch.ones(3, 7, dtype=torch.int64), torch.arange(7) < torch.tensor([[7], [5], [0]])
    assert WindowSpans(3)(tokens, mask).tolist()[1] == [0, 0, 0, 1, 1, -1, -1]
    views = view_seeds(0, 0, torch.arange(3))
    found = RandomSpans(3)(tokens, mask, views)
    assert torch.equal(found, RandomSpans(3)(tokens, mask, views))
    assert (found[~mask] == -1).all()
    many = RandomSpans(4)(torch.ones(500, 41, dtype=torch.int64), torch.ones(500, 41, dtype=torch.bool),
                          view_seeds(0, 0, torch.arange(500)))  # fmt: skip
    assert float(many[:, -1].float().mean()) == pytest.approx(10, rel=0.05)
    with pytest.raises(UserError):
        RandomSpans()(tokens, mask)


def test_pieces_of_a_tokenizer() -> None:
    class Tokenizer:
        def __len__(self) -> int:
            return 2

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["\u0120the", "ory"]

    pieces = pieces_of(Tokenizer())
    assert FunctionWordSpans(pieces).function.tolist() == [True, False]
    with pytest.raises(UserError):
        pieces_of(object())
