from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.nn.projectors import MapProjector, MapToTokens, TokenProjector, TokensToMap, projector_for

SHAPES = [
    ([2, 6], [2, 9], TokenProjector),
    ([2, 5, 6], [2, 5, 9], TokenProjector),
    ([2, 6, 8, 8], [2, 9, 4, 4], MapProjector),
    ([2, 6, 4, 4], [2, 9, 8, 6], MapProjector),
    ([2, 16, 6], [2, 9, 4, 4], TokensToMap),
    ([2, 17, 6], [2, 9, 8, 8], TokensToMap),
    ([2, 6, 4, 4], [2, 16, 9], MapToTokens),
    ([2, 6, 7, 7], [2, 17, 9], MapToTokens),
]


@pytest.mark.parametrize(("student", "teacher", "kind"), SHAPES)
def test_a_projector_gives_the_teacher_s_shape_and_learns(
    student: list[int], teacher: list[int], kind: type[nn.Module]
) -> None:
    projector = projector_for(student, teacher)
    assert type(projector) is kind
    features = torch.randn(3, *student[1:], requires_grad=True)
    out = projector(features)
    assert list(out.shape) == [3, *teacher[1:]]
    out.square().sum().backward()
    assert features.grad is not None
    assert all(parameter.grad is not None for parameter in projector.parameters())


def test_sequences_of_any_length_share_a_token_projector() -> None:
    projector = projector_for([2, 5, 6], [2, 5, 9])
    assert projector(torch.ones(1, 11, 6)).shape == (1, 11, 9)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [([2, 6], [3, 9]), ([2, 5, 6], [2, 7, 9]), ([2, 6], [2, 4, 9]), ([2, 6, 4, 4, 4], [2, 6, 4, 4, 4])],
)
def test_shapes_that_no_projector_joins_are_named(student: list[int], teacher: list[int]) -> None:
    with pytest.raises(UserError, match="projector: given student .*, teacher .*give a projector module of your own"):
        projector_for(student, teacher)


@pytest.mark.parametrize(("student", "teacher"), [([2, 15, 6], [2, 9, 4, 4]), ([2, 6, 4, 4], [2, 15, 9])])
def test_tokens_must_be_a_square_or_one_more(student: list[int], teacher: list[int]) -> None:
    with pytest.raises(UserError, match="given 15 tokens; allowed: a square number of tokens, or one more"):
        projector_for(student, teacher)


def test_tokens_keep_their_place_in_the_grid() -> None:
    tokens = torch.zeros(1, 10, 1)
    tokens[0, 1 + 5, 0] = 1.0  # behind a class token: row 1, column 2 of a 3 x 3 grid
    projector = TokensToMap(1, 1, (3, 3), 10)
    with torch.no_grad():
        projector.map.convolution.weight.fill_(1.0)
        projector.map.convolution.bias.zero_()
    expected = torch.zeros(1, 1, 3, 3)
    expected[0, 0, 1, 2] = 1.0
    assert torch.equal(projector(tokens), expected)
    back = MapToTokens(1, 1, 10)
    with torch.no_grad():
        back.map.convolution.weight.fill_(1.0)
        back.map.convolution.bias.zero_()
    again = back(expected)
    assert torch.equal(again[:, 1:], tokens[:, 1:])
    torch.testing.assert_close(again[0, 0, 0], torch.tensor(1 / 9))
