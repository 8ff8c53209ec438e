"""SwiftBrush with the real classes: a diffusers UNet, peft's LoRA on it as the fake score, a transformers text encoder.

Random weights at tiny size, so nothing is downloaded and the images are noise; put your own pipeline's parts in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from limbeck.diffusion.conditions import ConditionBank
from limbeck.diffusion.denoiser import from_diffusers
from limbeck.diffusion.noise import DiscreteSchedule, prediction_of
from limbeck.diffusion.scores import Scores
from limbeck.engine import fit
from limbeck.systems.diffusion.swiftbrush.method import ALPHA_T, SwiftBrush, one_step

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
    attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
).eval()  # fmt: skip
scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
encoder = CLIPTextModel(
    CLIPTextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=257, eos_token_id=258, pad_token_id=258,
    )
).eval()  # fmt: skip

# Prompts are embedded once; from then on the text encoder is not needed.
PROMPTS = ["a lighthouse at dusk", "two foxes", "a red bicycle", "a bowl of plums"]


def encode(texts: list[str]) -> Tensor:
    """Bytes for tokens; a real tokenizer goes here."""
    tokens = torch.full((len(texts), 16), 258)
    for row, text in enumerate(texts):
        own = torch.tensor([257, *text.encode()[:14]])
        tokens[row, : len(own)] = own
    embedded: Tensor = encoder(tokens).last_hidden_state
    return embedded


bank = ConditionBank.encode(PROMPTS, encode, name="tiny random CLIP")

# The generator starts from the teacher; the teacher then gets peft's adapters, and one module plays both roles.
schedule, prediction = DiscreteSchedule.from_diffusers(scheduler), prediction_of(scheduler)
generator = one_step(from_diffusers(copy.deepcopy(unet)), schedule, prediction=prediction, alpha=ALPHA_T)
unet.requires_grad_(False)
unet.add_adapter(LoraConfig(r=64, lora_alpha=108, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))


@contextmanager
def off() -> Iterator[None]:
    """The teacher's role."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


scores = Scores.switched(
    from_diffusers(unet), off, nn.ParameterList(weight for weight in unet.parameters() if weight.requires_grad),
    schedule=schedule, prediction=prediction, null=bank.null, frozen=unet,
)  # fmt: skip

with torch.no_grad():
    latents, times, texts = torch.randn(2, 4, 8, 8), torch.tensor([20, 980]), bank.rows(torch.tensor([0, 1]))
    before = scores.eps_real(latents, times, texts, 4.5)

distiller = SwiftBrush(generator, scores, (4, 8, 8), scale=4.5)
history = fit(distiller, bank.loader(2, copies=4), steps=4, log_every=1, accelerator="cpu")

with torch.no_grad():
    apart = float((scores.eps_real(latents, times, texts, 4.5) - before).abs().max())
    moved = float((scores.eps_fake(latents, times, texts) - scores.eps_real(latents, times, texts)).abs().max())
    made = distiller.finish()(torch.randn(2, 4, 8, 8), texts)
print(f"{history.steps} steps; terms {', '.join(name for name in history.names() if name != 'loss')}")
print(f"teacher moved by {apart:g}, fake score by {'something' if moved > 0 else 'nothing'}")
print(f"one call gives latents of shape {list(made.shape)}; decode them with the pipeline's VAE")
