"""Wrong labels on purpose, to see what training on them does."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.views import epoch_seed
from limbeck.errors import UserError


def flip_labels(labels: Tensor, share: float, classes: int, *, seed: int = 0) -> Tensor:
    """Give exactly ``round(share * N)`` of the ``labels`` (int64 ``[N]``) another class, each other one alike.

    Which samples, and to which class, is a function of ``seed`` and ``N``. This is symmetric noise: a share of
    ``(classes - 1) / classes`` leaves no information.

    Raises:
        UserError: a share outside [0, 1], fewer than two classes, labels outside ``[0, classes)``.
    """
    if not 0 <= share <= 1:
        raise UserError("share", share, "0 to 1")
    if classes < 2:
        raise UserError("classes", classes, "2 or more")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError("labels", f"{int(labels.min())} to {int(labels.max())}", f"0 to {classes - 1}")
    generator = torch.Generator().manual_seed(epoch_seed(seed, 0))
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    steps = torch.randint(1, classes, (len(chosen),), generator=generator)
    flipped = labels.clone()
    flipped[chosen] = (flipped[chosen] + steps) % classes
    return flipped
