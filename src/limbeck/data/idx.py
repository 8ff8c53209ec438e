"""Files in the IDX format of the MNIST family, plain or gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UserError

_BYTES = 0x08


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor of an IDX file, in the shape that its header states.

    The header holds two zero bytes, the type, the number of axes, and the length of each as a big-endian int32.

    Raises:
        UserError: the file is no IDX file of bytes, or has another length than its header says.
    """
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise UserError("idx file", str(path), "a file in the IDX format with unsigned bytes")
    axes = content[3]
    shape = [int(length) for length in np.frombuffer(content, dtype=">i4", count=axes, offset=4)]
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    if len(values) != int(np.prod(shape)):
        raise UserError("idx file", f"{path} with {len(values)} values", f"{' x '.join(map(str, shape))} values")
    return torch.from_numpy(values.copy()).view(shape)
