"""Real photos with the real MobileSAM: chess pieces photographed for the web, at 320 instead of 1,024 pixels.

The teacher is MobileSAM with its published weights; it was itself distilled from SAM. Nobody has marked objects in the
photos, so that the objects asked for are the teacher's own answers to a grid of points. Photos on white ground have a
silhouette besides, found by a threshold: a truth that owes nothing to the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.cache import fingerprint_module
from limbeck.data.artefacts import artefact, fetch
from limbeck.data.images import in_threads, open_image
from limbeck.data.prompts import point_prompt
from limbeck.data.split import Split, Splits
from limbeck.errors import LimbeckError, UserError
from limbeck.measure.masks import mean_iou, prompted
from limbeck.models import imagenet, mobile_sam
from limbeck.models.image_encoders import ConvBlock
from limbeck.models.segment_anything import LayerNorm2d, SegmentAnything
from limbeck.objectives.masks import best_mask
from limbeck.sources import Cached, Live
from limbeck.testbeds.base import Check, Gate, Size, Testbed
from limbeck.testbeds.prompting import answers, embeddings
from limbeck.testbeds.recipe import kept_numbers, kept_signals, kept_tensors, seeded

PHOTOS = "img-classifier"
SIDE, STRIDE = 320, 16
#: Side of the low-resolution masks.
MASK = SIDE // 4
KINDS = ("box", "centre", "edge")
#: Objects of a photo, and points along a side of the grid that finds them.
OBJECTS, GRID = 3, 4
# SAM pads with zeros behind the normalisation; this colour becomes (nearly) that.
_PAD = tuple(round(value) for value in mobile_sam.MEAN)
_WHITE = 238


@dataclass(frozen=True)
class Regime:
    """Photos of every part."""

    about: str
    train: int
    validation: int
    test: int


class SAMPhotos(Testbed):
    """See the module. Inputs are uint8 photos ``[N, 3, 320, 320]``, padded on the right or below."""

    name = "sam_photos"
    regimes: ClassVar[Mapping[str, Regime]] = {
        "plain": Regime("300 photos to learn from, 48 to be judged by", 300, 16, 48)
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        # Silhouettes of photos on white ground, asked for by their box.
        "silhouette_miou": (0.8, 1.0),
        "objects_per_photo": (1.0, OBJECTS),
        "lead_over_untrained_encoder": (0.2, 1.0),
    }

    def __init__(self, regime: str = "plain", size: Size = "full") -> None:
        super().__init__(regime, size)
        self.plan = self.regimes[regime] if size == "full" else Regime("seconds", 6, 2, 2)

    @property
    def num_classes(self) -> int:
        """In an object or not."""
        return 2

    def data_hashes(self) -> dict[str, str]:
        """Of photos, MobileSAM and the student's trunk."""
        return {name: artefact(name).sha256 for name in (PHOTOS, mobile_sam.ARTEFACT, imagenet.ARTEFACT)}

    def splits(self, seed: int = 0) -> Splits:
        """The same photos for every seed; near-duplicates of a photo are left out of all parts."""
        plan, photos = self.plan, self._photos
        ends = torch.tensor([plan.train, plan.validation, plan.test]).cumsum(0).tolist()
        parts = [torch.arange(start, end) for start, end in zip([0, *ends], ends)]
        train, validation, test = (Split(photos["image"][rows], photos["size"][rows], rows) for rows in parts)
        return Splits(train, validation, test)

    @cached_property
    def _photos(self) -> dict[str, Tensor]:
        """``image`` uint8 ``[N, 3, 320, 320]`` and ``size`` int64 ``[N, 2]``: height and width before padding."""
        wanted = self.plan.train + self.plan.validation + self.plan.test
        content = {"data": self.data_hashes()[PHOTOS], "side": SIDE, "pad": list(_PAD), "wanted": wanted, "version": 1}
        return kept_tensors(f"{self.name}-photos", content, lambda: _read(fetch(PHOTOS), wanted))

    def teacher(self) -> SegmentAnything:
        """MobileSAM, frozen."""
        return _mobile_sam()

    def student(self, seed: int = 0) -> PhotoEncoder:
        """ImageNet's MobileNetV2 up to 1/16, frozen, and a fresh head whose last norm is the teacher's: its scale is a
        tenth of a fresh norm's, and a few hundred steps would go into learning that alone."""
        encoder = PhotoEncoder(_trunk(), seeded(head, seed))
        teacher: Any = self.teacher().image_encoder
        encoder.head[-1].load_state_dict(teacher.neck[-1].state_dict())  # type: ignore[index]
        return encoder

    def embeddings(self) -> Cached:
        """The teacher's embeddings of the training photos, from the teacher cache (float16)."""
        return self._signals("teacher", self.teacher().image_encoder)

    def trunk_maps(self) -> Tensor:
        """The frozen trunk's maps of the training photos ``[N, 96, 20, 20]``, computed once as well."""
        train = self.splits().train
        return torch.as_tensor(self._signals("trunk", _trunk())({"id": train.id}, ("embedding",))["embedding"])

    def _signals(self, role: str, network: nn.Module) -> Cached:
        source = Live(network, forward=_embed)
        data = {"preprocessing": f"{SIDE} {_PAD} {mobile_sam.MEAN} {mobile_sam.STD}", "data": str(self.data_hashes())}
        return kept_signals(
            f"{self.name}-{role}-{self.size}", source, self.splits().train.batches(4), ("embedding",), data
        )

    def objects(self, part: str) -> Tensor:
        """What the teacher finds on the photos of ``train`` or ``test`` without being told: bool ``[N, 3, 80, 80]``."""
        split: Split = getattr(self.splits(), part)

        def make() -> dict[str, Tensor]:
            embedding = self.embeddings()({"id": split.id})["embedding"] if part == "train" else self.test_embeddings()
            return {"objects": found_objects(self.teacher(), torch.as_tensor(embedding), split.labels).byte()}

        content = {"data": self.data_hashes(), "plan": str(self.plan), "part": part, "grid": GRID, "version": 1}
        return kept_tensors(f"{self.name}-objects", content, make)["objects"].bool()

    def test_embeddings(self) -> Tensor:
        """The teacher's embeddings of the test photos; made once."""
        content = {"data": self.data_hashes(), "plan": str(self.plan), "version": 1}
        images = torch.as_tensor(self.splits().test.input)
        return kept_tensors(
            f"{self.name}-test", content, lambda: {"embedding": run(self.teacher().image_encoder, images)}
        )["embedding"]

    def teacher_answers(self) -> dict[str, Tensor]:
        """Kind of prompt -> the teacher's masks of the test objects; made once."""
        content = {"data": self.data_hashes(), "plan": str(self.plan), "kinds": KINDS, "version": 1}

        def make() -> dict[str, Tensor]:
            found = self.answers(self.teacher(), self.test_embeddings())
            return {kind: masks.byte() for kind, masks in found.items()}

        return {kind: masks.bool() for kind, masks in kept_tensors(f"{self.name}-answers", content, make).items()}

    def answers(self, model: SegmentAnything, embedding: Tensor) -> dict[str, Tensor]:
        """What ``model`` answers about the test objects when its embeddings of the test photos are these."""
        return answers(model, embedding, self.objects("test"), (MASK, MASK), KINDS, batch_size=8)

    def test_answers(self, model: SegmentAnything) -> dict[str, Tensor]:
        """The same from the photos on."""
        return self.answers(model, run(model.image_encoder, torch.as_tensor(self.splits().test.input)))

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``alignment``: mean IoU with the teacher's answers to the same prompts on the test photos, by kind;
        ``silhouette``: with the silhouettes of photos on white ground, asked for by their box."""
        if not isinstance(model, SegmentAnything):
            raise UserError("model", type(model).__name__, "a SegmentAnything, encoder and decoder")
        images = torch.as_tensor(split.input)
        embedding = run(model.image_encoder, images)
        counted = self.objects("test").flatten(2).any(2)
        found = prompted(self.answers(model, embedding), self.teacher_answers(), "alignment", counted)
        return {**found, "silhouette": silhouette_iou(model, embedding, images)}

    def gate(self) -> Gate:
        """MobileSAM finds silhouettes at this size and something to ask about, and its encoder is what does it."""
        content = {"data": self.data_hashes(), "plan": str(self.plan), "weights": fingerprint_module(self.student())}
        figures = kept_numbers(f"gate-{self.name}-{self.size}", content, self._gate_figures)
        bounds = self.bounds if self.size == "full" else {"objects_per_photo": (0.0, OBJECTS)}
        return Gate(tuple(Check(name, figures[name], low, high) for name, (low, high) in bounds.items()))

    def _gate_figures(self) -> dict[str, float]:
        teacher, images = self.teacher(), torch.as_tensor(self.splits().test.input)
        found = silhouette_iou(teacher, self.test_embeddings(), images)
        blind = silhouette_iou(teacher, run(self.student(), images), images)
        objects = self.objects("test").flatten(2).any(2).sum(1).double().mean()
        return {
            "silhouette_miou": found, "lead_over_untrained_encoder": found - blind,
            "objects_per_photo": float(objects),
        }  # fmt: skip


class PhotoEncoder(nn.Module):
    """A frozen ``trunk`` and the ``head`` that learns: ``[B, 3, H, W]`` -> ``[B, 256, H / 16, W / 16]``."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.trunk(images))
        return embedding


def head() -> nn.Module:
    """96 channels to 256: two convolution blocks and a neck whose 3 x 3 convolution is depthwise."""
    return nn.Sequential(
        ConvBlock(96), ConvBlock(96), nn.Conv2d(96, 256, 1, bias=False), LayerNorm2d(256),
        nn.Conv2d(256, 256, 3, padding=1, groups=256, bias=False), LayerNorm2d(256),
    )  # fmt: skip


@torch.no_grad()
def run(encoder: nn.Module, images: Tensor, batch_size: int = 4) -> Tensor:
    """Embeddings of uint8 photos."""
    return torch.cat([embeddings(encoder, mobile_sam.normalise(part)) for part in images.split(batch_size)])


@torch.no_grad()
def found_objects(model: SegmentAnything, embedding: Tensor, sizes: Tensor) -> Tensor:
    """Up to three objects per photo, bool ``[N, 3, 80, 80]``, from a grid of points, as SAM's automatic mode finds
    them: sure ones (predicted IoU above 0.8) of 1% to 60% of the photo, none like a surer one (IoU above 0.5)."""
    places = (torch.arange(GRID) + 0.5) / GRID
    grid = torch.stack(torch.broadcast_tensors(places[None, :], places[:, None]), -1).flatten(0, 1)
    made = torch.zeros(len(embedding), OBJECTS, MASK, MASK, dtype=torch.bool)
    for number, (height, width) in enumerate((sizes * MASK // SIDE).tolist()):
        points, labels = point_prompt(grid * torch.tensor([width, height]))
        signals = model.decode(embedding[number, None].float(), points[None], labels[None], (MASK, MASK))
        masks, sure = best_mask(signals)[0] > 0, signals["iou"][0, :, 1:].amax(-1)
        share = masks[:, :height, :width].flatten(1).double().mean(1)
        kept: list[Tensor] = []
        for place in sure.argsort(descending=True).tolist():
            mask = masks[place]
            fits = float(sure[place]) > 0.8 and 0.01 < float(share[place]) < 0.6
            if fits and len(kept) < OBJECTS and all(mean_iou(mask, other) < 0.5 for other in kept):
                kept.append(mask)
        if kept:
            made[number, : len(kept)] = torch.stack(kept)
    return made


def silhouettes(images: Tensor) -> Tensor:
    """The piece on a photo whose border is white, bool ``[N, 80, 80]``; empty for other photos."""
    from scipy import ndimage

    made = torch.zeros(len(images), MASK, MASK, dtype=torch.bool)
    for number, image in enumerate(images.amin(1).numpy()):
        padding = (images[number] == torch.tensor(_PAD, dtype=torch.uint8)[:, None, None]).all(0).numpy()
        rows, columns = np.nonzero(~padding)
        photo = image[: rows.max() + 1, : columns.max() + 1]
        border = np.concatenate([photo[:3].ravel(), photo[-3:].ravel(), photo[:, :3].ravel(), photo[:, -3:].ravel()])
        if (border > _WHITE).mean() < 0.98:
            continue
        regions, count = ndimage.label(photo <= _WHITE)
        if not count:
            continue
        largest = ndimage.binary_fill_holes(regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]))
        whole = np.zeros((SIDE, SIDE), dtype=np.float32)
        whole[: photo.shape[0], : photo.shape[1]] = largest
        made[number] = torch.from_numpy(whole.reshape(MASK, 4, MASK, 4).mean((1, 3)) >= 0.5)
    return made


def silhouette_iou(model: SegmentAnything, embedding: Tensor, images: Tensor) -> float:
    """Mean IoU with the silhouettes that exist, asked for by their boxes; NaN where no photo has a white ground."""
    truth = silhouettes(images)
    white = truth.flatten(1).any(1)
    if not white.any():
        return float("nan")
    found = answers(model, embedding[white], truth[white, None], (MASK, MASK), ("box",), batch_size=8)
    return mean_iou(found["box"][:, 0], truth[white])


@cache
def _mobile_sam() -> SegmentAnything:
    return mobile_sam.mobile_sam()


@cache
def _trunk() -> nn.Module:
    return imagenet.mobilenet_v2().features[:14]


def _embed(encoder: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"embedding": encoder(mobile_sam.normalise(batch["input"]))}


def _read(folder: Path, wanted: int) -> dict[str, Tensor]:
    """The first ``wanted`` photos in a fixed random order that are photos and not like an earlier one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    images: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    seen = torch.zeros(0, 256)
    for start in range(0, len(order), 32):
        for made in in_threads(_padded, [paths[place] for place in order[start : start + 32]]):
            if made is None or len(images) == wanted:
                continue
            image, size, small = made
            if len(seen) and float((seen @ small).max()) > 0.97:
                continue
            images.append(image)
            sizes.append(size)
            seen = torch.cat([seen, small[None]])
        if len(images) == wanted:
            break
    return {"image": torch.stack(images), "size": torch.tensor(sizes)}


def _padded(path: Path) -> tuple[Tensor, tuple[int, int], Tensor] | None:
    """A photo as uint8, its size before padding, and a standardised 16 x 16 miniature to tell copies by."""
    try:
        photo = open_image(str(path)).convert("RGB")
    except LimbeckError:
        # Some files of the package are web pages under the name of an image.
        return None
    factor = SIDE / max(photo.size)
    width, height = (max(STRIDE, round(side * factor)) for side in photo.size)
    pixels = torch.from_numpy(np.array(photo.resize((width, height), resample=2))).permute(2, 0, 1)
    image = torch.tensor(_PAD, dtype=torch.uint8)[:, None, None].repeat(1, SIDE, SIDE)
    image[:, :height, :width] = pixels
    small = torch.from_numpy(np.array(photo.resize((16, 16), resample=4).convert("L"))).float().flatten()
    small = small - small.mean()
    return image, (height, width), small / small.norm().clamp_min(1e-6)
