"""Faster Diffusion in a pipeline of diffusers, and in a loop of your own.

The pipeline here is a tiny StableDiffusionPipeline with random weights, so that the example needs no download. With
your own, `pipe = StableDiffusionPipeline.from_pretrained("./stable-diffusion")` and prompts take the place of
`tiny_pipeline()` and of the random embeddings; nothing else changes.

    python examples/faster-diffusion.py
"""

from __future__ import annotations

import time
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from limbeck.diffusion.samplers import FromDiffusers
from limbeck.diffusion.split import split, split_flops
from limbeck.systems.diffusion.faster_diffusion.keys import KeySchedule
from limbeck.systems.diffusion.faster_diffusion.method import FasterDiffusion
from limbeck.systems.diffusion.faster_diffusion.pipeline import accelerated

STEPS, GUIDANCE = 50, 7.5


def tiny_pipeline(control: bool = False) -> Any:
    """Stable Diffusion in everything but size and training."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    parts: dict[str, Any] = {"vae": autoencoder, "unet": unet.eval(), "scheduler": scheduler}
    kind: Any = StableDiffusionPipeline
    if control:
        kind = StableDiffusionControlNetPipeline
        parts["controlnet"] = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    unused = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = kind(**parts, **unused, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, **more: Any) -> tuple[torch.Tensor, float]:
    """Latents of two embedded prompts, and the seconds they took."""
    generator = torch.Generator().manual_seed(0)
    text, nothing = torch.randn(2, 2, 7, 32, generator=generator)
    start = time.perf_counter()
    made = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=nothing,
        latents=torch.randn(2, 4, 16, 16, generator=generator),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
        **more,
    ).images
    return made, time.perf_counter() - start


def main() -> None:
    """Print what each way costs and how far it is from the full sampler."""
    pipe = tiny_pipeline()
    full, seconds = generate(pipe)
    print(f"full sampler          {STEPS} encoder calls  {seconds:.2f} s")
    for keys, injection in (("50ls", 0.0), ("50ls", 0.003), (5, 0.0)):
        with accelerated(pipe, keys, injection=injection) as counts:
            latents, seconds = generate(pipe)
        apart = float((latents - full).std() / full.std())
        cost = f"{counts.encoder_calls:2} encoder calls  {seconds:.2f} s"
        print(f"keys {keys!s:5} noise {injection:<5}  {cost}  apart {apart:.3f}")

    # A ControlNet feeds the encoder, so it runs at the key steps alone as well.
    controlled = tiny_pipeline(control=True)
    with accelerated(controlled, "50ls") as counts:
        generate(controlled, image=torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    print(f"with a ControlNet     {counts.encoder_calls:2} encoder calls")

    # A loop of your own, around the same UNet and scheduler.
    generator = torch.Generator().manual_seed(0)
    text, nothing = torch.randn(2, 2, 7, 32, generator=generator)
    fast = FasterDiffusion(
        pipe.unet, FromDiffusers(pipe.scheduler, STEPS), "50ls", scale=GUIDANCE, null=lambda given: nothing
    )
    fast.sample(torch.randn(2, 4, 16, 16, generator=generator), text)
    halves = split_flops(split(pipe.unet), torch.randn(1, 4, 16, 16), torch.tensor([500]), text[:1])
    share = halves["encode"] / (halves["encode"] + halves["decode"])
    keys = KeySchedule.of("50ls", STEPS)
    saved = share * (1 - len(keys) / STEPS)
    print(f"the encoder is {share:.0%} of this UNet; {len(keys)} keys of {STEPS} save {saved:.0%}")


if __name__ == "__main__":
    main()
