from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.nn.patches import masking, patchify, restore_tokens, standardise, take_tokens, unpatchify, visible

IMAGES = torch.randn(3, 2, 8, 12, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))


def test_patches_lie_row_by_row_and_hold_rows_columns_channels() -> None:
    patches = patchify(IMAGES, 4)
    assert patches.shape == (3, 6, 32)
    # The second patch of the second row of patches; in it row 1, column 3, channel 1.
    assert patches[2, 4, (1 * 4 + 3) * 2 + 1] == IMAGES[2, 1, 4 + 1, 4 + 3]


def test_unpatchify_undoes_patchify() -> None:
    assert torch.equal(unpatchify(patchify(IMAGES, 4), 4, 2, size=(8, 12)), IMAGES)
    square = IMAGES[..., :8]
    assert torch.equal(unpatchify(patchify(square, 2), 2, 2), square)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="multiples of the patch size, 5"):
        patchify(IMAGES, 5)
    with pytest.raises(UserError, match=r"patches: given \[3, 6, 32\]"):
        unpatchify(patchify(IMAGES, 4), 4, 2)
    with pytest.raises(UserError, match="patches"):
        unpatchify(patchify(IMAGES, 4), 4, 1, size=(8, 12))


def test_standardised_patches_have_mean_zero_and_deviation_one() -> None:
    found = standardise(5 * patchify(IMAGES, 4) + 7)
    torch.testing.assert_close(found.mean(-1), torch.zeros(3, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(-1), torch.ones(3, 6), atol=1e-4, rtol=0)
    assert torch.equal(standardise(torch.ones(1, 2, 4)), torch.zeros(1, 2, 4))


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"), [(196, 0.75, 49), (49, 0.75, 12), (49, 0.9, 4), (49, 0.95, 2)]
)
def test_as_many_are_seen_as_the_formula_says(tokens: int, ratio: float, expected: int) -> None:
    assert visible(tokens, ratio) == expected
    assert masking(torch.rand(2, tokens), ratio).keep.shape == (2, expected)


def test_a_ratio_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="mask ratio: given 0.98; allowed: at most 0.9796"):
        visible(49, 0.98)
    for ratio in (1.0, -0.1):
        with pytest.raises(UserError, match="0 to below 1"):
            visible(49, ratio)


def test_the_smallest_noise_is_seen_first() -> None:
    chosen = masking(NOISE, 0.75)
    for row in range(5):
        order = sorted(range(16), key=lambda place: float(NOISE[row, place]))
        assert chosen.keep[row].tolist() == order[:4]
        assert chosen.masked[row].nonzero().flatten().tolist() == sorted(order[4:])


def test_restoring_puts_seen_tokens_in_their_places_and_the_filler_elsewhere() -> None:
    tokens, chosen = torch.randn(5, 16, 3), masking(NOISE, 0.75)
    restored = restore_tokens(take_tokens(tokens, chosen.keep), torch.full((3,), 9.0), chosen.restore)
    assert torch.equal(restored[~chosen.masked], tokens[~chosen.masked])
    assert bool((restored[chosen.masked] == 9).all())
    # Nothing hidden: unshuffling undoes shuffling.
    whole = masking(NOISE, 0.0)
    assert torch.equal(restore_tokens(take_tokens(tokens, whole.keep), torch.zeros(3), whole.restore), tokens)
