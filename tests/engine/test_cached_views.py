"""The student sees the very view of the teacher, whether the teacher answers live or from a cache of several views."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.cache import CacheReader, MissingSamples, fingerprint_text, write_cache
from limbeck.data.augmentation import CropFlip
from limbeck.data.loaders import TensorLoader
from limbeck.data.mixing import Chain, PartnerMix
from limbeck.data.siamese import SiameseAugment
from limbeck.data.split import Split
from limbeck.data.views import numbered_views, view_numbers
from limbeck.engine import Distiller, fit
from limbeck.errors import UserError
from limbeck.objectives import KL, CrossEntropy
from limbeck.sources import Cached, Live, Source

VIEWS = 3


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * width, 5),
    )  # fmt: skip


def data() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(48, 3, 8, 8, generator=generator)
    return Split(images, torch.randint(0, 5, (48,), generator=generator), torch.arange(48) * 11)


def loader(seed: int = 0, **options: Any) -> TensorLoader:
    split = data()
    assert isinstance(split.input, torch.Tensor)
    transform = Chain(
        CropFlip(2),
        SiameseAugment(("color",)),
        PartnerMix(split.input, split.labels, 5, augment=CropFlip(2)),
    )
    return TensorLoader(split, 16, seed=seed, transform=transform, views=VIEWS, **options)


def losses(teacher: Source, seed: int = 0) -> tuple[list[float], torch.Tensor]:
    distiller = Distiller(network(4, 1), 0.5 * CrossEntropy() + 0.5 * KL(temperature=2), teacher)
    history = fit(distiller, loader(seed), epochs=VIEWS + 1, log_every=1)
    weights = torch.cat([weight.detach().flatten() for weight in distiller.student.parameters()])
    return history.curve("loss")["y"], weights


@pytest.mark.parametrize("seed", [0, 7])
def test_live_and_cached_training_with_augmentation_are_the_same_bit_for_bit(tmp_path: Path, seed: int) -> None:
    live = Live(network(8, 0))
    about = {"augmentation": fingerprint_text(repr(loader().transform))}
    # The cache is written once, with the loader of another run.
    write_cache(live, loader(seed=3).every_view(), tmp_path, codec="float32", fingerprint=about)
    assert len(CacheReader(tmp_path)) == 48 * VIEWS
    one, other = losses(live, seed), losses(Cached(tmp_path, expect=about), seed)
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])
    assert len(set(one[0])) == len(one[0]) == (VIEWS + 1) * 3


def test_reading_ahead_changes_nothing_and_happens_in_a_thread(tmp_path: Path) -> None:
    write_cache(Live(network(8, 0)), loader().every_view(), tmp_path, codec="float32")
    cached, threads = Cached(tmp_path), set()
    attach = cached.attach(("logits",))

    def noted(batch: dict[str, Any]) -> dict[str, Any]:
        threads.add(threading.current_thread().name)
        return attach(batch)

    plain, ahead = loader(), loader(ahead=noted)
    for epoch in range(2):
        for one, other in zip(plain, ahead, strict=True):
            assert torch.equal(one["input"], other["input"])
            assert plain.state_dict() == ahead.state_dict()
            # What was read ahead is used: the reader is not asked again.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cached, "_read", None)
                found = cached(other, ("logits",))
            assert torch.equal(found["logits"], cached(one, ("logits",))["logits"])
        assert ahead.epoch == epoch + 1
    assert all(name.startswith("limbeck-ahead") for name in threads)
    first = next(iter(ahead))
    resumed = loader(ahead=noted)
    resumed.load_state_dict(ahead.state_dict())
    rest = [one["id"] for one in resumed]
    whole = loader()
    whole.set_epoch(2)
    assert torch.equal(torch.cat([first["id"], *rest]), torch.cat([one["id"] for one in whole]))
    assert threading.active_count() < 10


def test_an_error_ahead_comes_with_its_batch_and_a_fallback_is_left_its_work(tmp_path: Path) -> None:
    live = Live(network(8, 0))
    batches = list(loader().every_view())
    write_cache(live, batches[:1], tmp_path, codec="float32")
    with pytest.raises(MissingSamples):
        list(loader(ahead=Cached(tmp_path).attach()))
    both = Cached(tmp_path, fallback=live)
    found = [("ready" in batch, both(batch, ("logits",))) for batch in loader(ahead=both.attach())]
    assert not all(ready for ready, _ in found)


def test_every_epoch_shows_another_view_until_all_were_seen() -> None:
    ids = torch.arange(500)
    numbers = torch.stack([view_numbers(5, epoch, ids, VIEWS) for epoch in range(2 * VIEWS)])
    assert torch.equal(numbers[:VIEWS].sort(0).values, torch.arange(VIEWS).unsqueeze(1).expand(-1, 500))
    assert torch.equal(numbers[:VIEWS], numbers[VIEWS:])
    # Samples begin at different views.
    assert all(120 < int((numbers[0] == number).sum()) < 220 for number in range(VIEWS))
    seeds = {tuple(numbered_views(ids, number).tolist()) for number in range(VIEWS)}
    assert len({seed for some in seeds for seed in some}) == 500 * VIEWS


def test_a_view_that_is_not_kept_is_missing(tmp_path: Path) -> None:
    write_cache(Live(network(8, 0)), loader().every_view(), tmp_path, codec="float32")
    cached, free = Cached(tmp_path), loader()
    free.views = None
    with pytest.raises(MissingSamples):
        cached(next(iter(free)), ("logits",))
    for batch in loader(seed=9):
        cached(batch, ("logits",))


def test_views_need_a_transform() -> None:
    with pytest.raises(UserError, match="views: given 3"):
        TensorLoader(data(), 16, views=3)
    with pytest.raises(UserError, match="views: given 0"):
        TensorLoader(data(), 16, views=0, transform=CropFlip(1))
