"""Anomaly maps with a timm ResNet as the teacher, on a folder in the manner of MVTec AD.

A folder with train/good, test/KIND and ground_truth/KIND is read; here a small one of woven cloth is written first.
Take ``resnet34`` with pretrained weights and 256 pixels for real work. Run with: python examples/fabric-rd.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from limbeck.data.images import ImageFormat
from limbeck.data.mvtec import read_anomaly_folder
from limbeck.data.weave import woven
from limbeck.engine import OneClassRecipe
from limbeck.measure.anomaly import auroc, region_overlap
from limbeck.models.timm import import_timm
from limbeck.nn.multi_tap import MultiTap
from limbeck.systems.vision.fabric_rd.method import FabricRD

# A ResNet's stem is pooled by the network itself; the other taps are ends of its stages.
TAPS = {"t0": "maxpool", "t1": "layer1", "t2": "layer2", "t3": "layer3"}


def write_cloth(folder: Path, good: int, test: int, side: int) -> None:
    """Woven cloth, and cloth with broken picks, as files."""
    cloth = {"train/good": woven(good, side, seed=0), "test/good": woven(test, side, seed=1)}
    cloth["test/broken"] = woven(test, side, seed=2, defects=("broken",))
    for name, (images, masks, _) in cloth.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f"{number:03}.png")
        if name == "test/broken":
            truth = folder / "ground_truth" / "broken"
            truth.mkdir(parents=True)
            for number, mask in enumerate(masks):
                Image.fromarray((mask.numpy() * 255).astype("uint8")).save(truth / f"{number:03}_mask.png")


def main(folder: str = "", *, name: str = "resnet18", side: int = 64, epochs: int = 6, good: int = 24) -> float:
    """Image AUROC of a detector fitted to the folder's good images."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        if not folder:
            write_cloth(Path(made), good, 10, side)
        found = read_anomaly_folder(folder or made)
        images = ImageFormat(size=(side, side), resize=(side, side))
        train, test = (images([str(path) for path in part.input]) for part in (found.train, found.test))
        masks = found.decoded_masks(images)

    # Random weights, and narrow: nothing is downloaded. pretrained=True gives ImageNet's.
    network = import_timm().create_model(name, pretrained=False, channels=(16, 16, 32, 32))
    network.train()(train)
    detector = FabricRD(MultiTap(network, TAPS), recipe=OneClassRecipe(epochs=epochs, batch_size=4))
    detector.fit(train)
    maps, scores = detector.predict(test)
    area = auroc(scores, found.test.labels > 0)
    print(f"{len(train)} good images; threshold {detector.threshold_:.3g}; kinds {', '.join(found.kinds)}")
    print(f"image AUROC {area:.2f}", end="")
    print(f", regions found {region_overlap(maps, masks):.2f}" if masks is not None else "")
    return area


if __name__ == "__main__":
    main(*sys.argv[1:2])
