"""What the paper and the sheet say, with margins in points of mean IoU. Set before any recorded seed was run."""

from __future__ import annotations

from limbeck.experiment import Claim

ABSTRACT, RECALLED, SHEET = "abstract", "paper, recalled", "sheet"

MAIN: tuple[Claim, ...] = (
    Claim("Decoupled beats semi-coupled at equal steps", "decoupled", "semi", "alignment", 0.02, source=ABSTRACT),
    Claim("Decoupled beats coupled at equal steps", "decoupled", "coupled", "alignment", 0.02, source=ABSTRACT),
    Claim("Decoupled beats coupled with a fresh decoder", "decoupled", "coupled-fresh", "alignment", 0.02,
          source=ABSTRACT),
    Claim("Semi-coupled beats coupled", "semi", "coupled", "alignment", source=SHEET),
    Claim("Coupled from the teacher's decoder beats coupled with a fresh one", "coupled", "coupled-fresh", "alignment",
          source=SHEET),
    Claim("In about the time of semi-coupled, decoupled is ahead", "decoupled-3x", "semi", "alignment", 0.02,
          source=SHEET),
    Claim("Three times the steps do not bring semi-coupled past decoupled", "decoupled", "semi-3x", "alignment",
          source=SHEET),
    Claim("With no mask at all, within two points of true masks", "decoupled", "supervised", "truth", -0.02,
          source=SHEET),
    Claim("Better than no distillation", "decoupled", "none", "truth", 0.02, source=SHEET),
    Claim("On par with the teacher: within five points of its own accuracy", "decoupled-3x", "teacher", "truth", -0.05,
          source=ABSTRACT),
    Claim("Fine-tuning the decoder afterwards is not needed: within a point", "decoupled", "finetuned", "alignment",
          -0.01, source=RECALLED),
    Claim("A larger batch helps", "batch-32", "decoupled", "alignment", source=RECALLED),
    Claim("More epochs help", "decoupled-3x", "decoupled", "alignment", source=RECALLED),
    Claim("Plain MSE is as good as cosine", "decoupled", "cosine", "alignment", -0.01, source=SHEET),
    Claim("It needs the image's own embedding: 20 points over another image's", "decoupled", "wrong-image",
          "alignment", 0.2, source=SHEET),
)  # fmt: skip

PHOTOS: tuple[Claim, ...] = (
    Claim("Decoupled beats semi-coupled at equal steps", "decoupled", "semi", "alignment", 0.02, source=ABSTRACT),
    Claim("Better than the same encoder without distillation", "decoupled", "none", "alignment", 0.2, source=SHEET),
    Claim("It needs the image's own embedding: 10 points over another image's", "decoupled", "wrong-image",
          "alignment", 0.1, source=SHEET),
    Claim("Leaving the padding out of the loss costs nothing", "no-padding", "decoupled", "alignment", -0.01,
          source=SHEET),
)  # fmt: skip
