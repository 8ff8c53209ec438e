"""MobileSAM with transformers' own SamModel: a smaller encoder takes the place of its vision encoder.

The networks are tiny and random and the images are made here; with real ones only the first lines change:
``SamModel.from_pretrained("facebook/sam-vit-huge")``, images of 1,024 pixels from its processor, and any backbone with
a neck to 256 channels at a sixteenth of the size. Run with: python examples/mobilesam.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2Model,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)  # fmt: skip
from transformers.models.sam.modeling_sam import SamVisionEncoderOutput

from limbeck.cache import write_cache
from limbeck.data.loaders import TensorLoader
from limbeck.data.split import Split
from limbeck.engine import OptimizerSettings, fit
from limbeck.models.segment_anything import neck
from limbeck.sources import Cached, Live
from limbeck.systems.segment_anything.mobilesam.method import decoupled, put_back

SIDE, CELLS, WIDTH = 64, 4, 32


def teacher() -> Any:
    """A tiny SamModel with an embedding of 4 x 4 cells, 32 channels each."""
    vision = SamVisionConfig(
        hidden_size=48, output_channels=WIDTH, num_hidden_layers=3, num_attention_heads=4, mlp_dim=96, image_size=SIDE,
        patch_size=SIDE // CELLS, global_attn_indexes=[2], window_size=2, num_pos_feats=WIDTH // 2,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(
        hidden_size=WIDTH, image_size=SIDE, patch_size=SIDE // CELLS, mask_input_channels=4
    )
    decoder = SamMaskDecoderConfig(hidden_size=WIDTH, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=WIDTH)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    return SamModel(config).eval()


class SmallEncoder(nn.Module):
    """transformers' MobileNetV2 with SAM's neck, answering as SamModel expects of its vision encoder."""

    def __init__(self) -> None:
        super().__init__()
        config = MobileNetV2Config(depth_multiplier=0.35, output_stride=16, finegrained_output=False, image_size=SIDE)
        self.backbone: Any = MobileNetV2Model(config, add_pooling_layer=False)
        channels = self.backbone(torch.zeros(1, 3, SIDE, SIDE)).last_hidden_state.shape[1]
        self.neck = neck(channels, WIDTH)

    def forward(self, pixel_values: Tensor, **options: Any) -> SamVisionEncoderOutput:
        return SamVisionEncoderOutput(last_hidden_state=self.neck(self.backbone(pixel_values).last_hidden_state))


def embed(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The embedding of either encoder."""
    return {"embedding": model(batch["input"]).last_hidden_state}


def images(count: int) -> Tensor:
    """Bright squares on noise."""
    generator = torch.Generator().manual_seed(0)
    made = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    for image, (row, column) in zip(made, torch.randint(0, SIDE - 24, (count, 2), generator=generator).tolist()):
        image[:, row : row + 24, column : column + 24] += 2 * torch.rand(3, 1, 1, generator=generator)
    return made


def main(count: int = 48, steps: int = 60) -> tuple[float, float]:
    """Embedding loss at the start and at the end."""
    torch.manual_seed(0)
    sam, small = teacher(), SmallEncoder()
    split = Split(images(count), None, torch.arange(count))
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Live(sam.vision_encoder, forward=embed), split.batches(16), folder, ("embedding",))
        distiller = decoupled(small, Cached(folder), optimizer=OptimizerSettings(lr=3e-3), forward=embed)
        history = fit(distiller, TensorLoader(split, 8), steps=steps, log_every=5, accelerator="cpu")
    losses = history.curve("mse")["y"]
    print(f"embedding loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    example = {"pixel_values": split.input[:1], "input_boxes": torch.tensor([[[8.0, 8.0, 40.0, 40.0]]])}
    whole: Any = put_back(sam, distiller.finish(), example, path="vision_encoder")
    weights = [sum(part.numel() for part in model.parameters()) for model in (sam, whole)]
    print(f"weights of the pipeline: {weights[0]:,} -> {weights[1]:,}")
    with torch.no_grad():
        masks = whole(**example, multimask_output=False).pred_masks
    print(f"masks {list(masks.shape)} from the unchanged decoder")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
