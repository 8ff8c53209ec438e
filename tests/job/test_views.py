"""Augmented images whose signals are cached: ``limbeck distill --views N``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import limbeck
from limbeck.errors import UserError
from limbeck.job.plan import make_plan
from limbeck.job.progress import Progress
from limbeck.job.settings import Settings
from limbeck.job.teachers import teaching
from limbeck.job.train import cache_costs, cached_teacher, loader_of


@pytest.fixture
def given(image_folder: Path) -> tuple[Any, str, str]:
    torch.manual_seed(0)
    # Reads every pixel, so that no two views look the same.
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), "small:cnn_4k", f"folder:{image_folder}"


def test_every_view_is_cached_once_and_shown_in_turn(given: tuple[Any, str, str], tmp_path: Path) -> None:
    plan = make_plan(Settings(*given, "unused", views=3, batch_size=16, epochs=2, codec="float32"))
    count = len(plan.data.splits.train)
    assert plan.augment
    assert any("3 views of every sample" in choice.reason for choice in plan.choices)
    with teaching(plan) as live:
        assert cache_costs(plan, live).samples == 3 * count
        cached = cached_teacher(plan, tmp_path / "cache", live, Progress(quiet=True))
        loader, seen = loader_of(plan, plan.data.splits.train, shuffle=True, live_teacher=True), set()
        for epoch in range(4):
            loader.set_epoch(epoch)
            for batch in loader:
                want, found = (source(batch, ("logits",))["logits"] for source in (live, cached))
                torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
                seen |= set(batch["view"].tolist())
    assert len(seen) == 3 * count


def test_from_images_to_a_student(given: tuple[Any, str, str], tmp_path: Path) -> None:
    result = limbeck.distill(*given, tmp_path / "out", views=2, epochs=2, batch_size=32, baseline="none", quiet=True)
    assert result["models"]["student"]["agreement"] >= 0
    assert (tmp_path / "out" / "cache" / "manifest.json").exists()


def test_refused(given: tuple[Any, str, str], text_classifier: Path, text_table: Path) -> None:
    with pytest.raises(UserError, match="views: given 2; allowed: images, which are augmented; augment is off"):
        make_plan(Settings(*given, "unused", views=2, augment=False))
    with pytest.raises(UserError, match="views: given 0"):
        Settings(*given, "unused", views=0).check()
    with pytest.raises(UserError, match="views: given 2; .*these data are texts"):
        make_plan(Settings(f"hf:{text_classifier}", "slice:layers=0", f"csv:{text_table}", "unused", views=2))
