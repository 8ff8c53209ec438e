from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.pictures import contact_sheet
from limbeck.errors import UserError


def test_images_stand_row_by_row() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    sheet = contact_sheet(images, 2)
    assert sheet.shape == (5, 5)
    assert sheet[0, 0] == 0
    assert sheet[0, 3] == 128
    assert sheet[3, 0] == 255
    assert (sheet[3:, 3:] == 255).all(), "the missing image is blank"
    assert contact_sheet(torch.zeros(1, 3, 2, 2), 1).shape == (2, 2, 3)
    with pytest.raises(UserError):
        contact_sheet(torch.zeros(1, 2, 2, 2), 1)
