from __future__ import annotations

import torch

from limbeck.nn.gather import (
    gather_rows,
    is_first_process,
    row_counts,
    share_buffers,
    sum_over_processes,
    wait_for_all,
    world_size,
)
from limbeck.signals import SparseLogits

# Several processes are tried in tests/engine/test_distributed.py.


def test_one_process_is_the_whole() -> None:
    assert world_size() == 1
    assert is_first_process()
    wait_for_all()
    value = torch.ones(3, requires_grad=True)
    assert sum_over_processes(value) is value
    counts = row_counts(3, value.device)
    assert counts == [3]
    nested = {"a": value, "b": (value, SparseLogits.from_dense(torch.ones(3, 4), 2)), "c": "text"}
    assert gather_rows(nested, counts) is nested
    norm = torch.nn.BatchNorm1d(2)
    share_buffers(norm)
    assert torch.equal(norm.running_mean, torch.zeros(2))


def test_what_is_no_row_stays_as_it_is() -> None:
    # Nothing here may talk to another process: there is none.
    table = torch.ones(5, 2)
    nested = {"class_vectors": table, "scale": torch.tensor(2.0), "names": ["a", "b"], "none": None}
    assert gather_rows(nested, [2, 3], tables=["class_vectors"]) == nested
