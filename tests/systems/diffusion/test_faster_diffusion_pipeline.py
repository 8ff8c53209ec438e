"""Faster Diffusion on networks and pipelines of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from limbeck.diffusion.denoiser import Guided, from_diffusers
from limbeck.diffusion.samplers import FromDiffusers
from limbeck.errors import UserError
from limbeck.systems.diffusion.faster_diffusion.analysis import block_paths, feature_change
from limbeck.systems.diffusion.faster_diffusion.method import FasterDiffusion
from limbeck.systems.diffusion.faster_diffusion.pipeline import accelerated
from tests.systems.diffusion.test_faster_diffusion import KEYS, STEPS, ddim, noised, transformer


def unet() -> UNet2DConditionModel:
    return noised(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def stable_diffusion(scheduler: Any = None, control: ControlNetModel | None = None) -> Any:
    scheduler = scheduler or DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    kind = StableDiffusionPipeline if control is None else StableDiffusionControlNetPipeline
    parts = {} if control is None else {"controlnet": control}
    made = kind(
        vae=autoencoder(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    return made


def call(pipe: Any, count: int = 2, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, count, 5, 16, generator=generator)
    given = {
        "prompt_embeds": text[0],
        "negative_prompt_embeds": text[1],
        "latents": torch.randn(count, 4, 8, 8, generator=generator),
    }
    return pipe(**given, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent", **more).images


@pytest.mark.parametrize(
    "scheduler", [None, EulerDiscreteScheduler(steps_offset=1), DPMSolverMultistepScheduler(steps_offset=1)]
)
def test_stable_diffusion_pipeline(scheduler: Any) -> None:
    pipe = stable_diffusion(scheduler)
    full = call(pipe)
    own = pipe.unet, pipe.scheduler, dict(pipe.config)
    with accelerated(pipe, "all") as counts:
        assert torch.equal(call(pipe), full)
        assert (counts.encoder_calls, counts.decoder_calls) == (STEPS, STEPS)
    found = []
    for parallel in (False, True):
        with accelerated(pipe, KEYS, parallel=parallel, injection=0.01) as counts:
            found.append([call(pipe), call(pipe, 1)])
            assert counts.encoder_calls == 2 * len(KEYS), "every call of the pipeline begins anew"
            assert counts.decoder_calls == 2 * (len(KEYS) if parallel else STEPS)
    for serial, parallel_one in zip(*found, strict=True):
        torch.testing.assert_close(parallel_one, serial, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0][0], full)
    assert (pipe.unet, pipe.scheduler, dict(pipe.config)) == own
    assert torch.equal(call(pipe), full), "nothing is left behind"


def test_the_pipeline_is_the_sampler() -> None:
    pipe = stable_diffusion()
    with accelerated(pipe, KEYS, injection=0.01):
        by_pipeline = call(pipe)
    generator = torch.Generator().manual_seed(0)
    text, start = torch.randn(2, 2, 5, 16, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    sampler = FromDiffusers(pipe.scheduler, STEPS)
    fast = FasterDiffusion(pipe.unet, sampler, KEYS, scale=3.0, null=lambda condition: text[1], injection=0.01)
    torch.testing.assert_close(fast.sample(start, text[0]), by_pipeline, rtol=1e-4, atol=1e-4)


def test_the_pipeline_is_itself_again_after_an_error() -> None:
    pipe = stable_diffusion()
    own = pipe.unet, pipe.scheduler

    def fail() -> None:
        with accelerated(pipe, KEYS):
            assert pipe.unet is not own[0]
            assert isinstance(pipe.unet, UNet2DConditionModel)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (pipe.unet, pipe.scheduler) == own
    assert "forward" not in vars(pipe.unet)
    assert "step" not in vars(pipe.scheduler)


def test_control_net_runs_at_key_steps_alone() -> None:
    control = noised(ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(8, 16)))
    calls: list[int] = []
    handle = control.register_forward_hook(lambda *_: calls.append(1))
    pipe = stable_diffusion(control=control)
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    full = call(pipe, image=picture)
    assert len(calls) == STEPS
    with accelerated(pipe, "all"):
        assert torch.equal(call(pipe, image=picture), full)
    calls.clear()
    with accelerated(pipe, KEYS):
        fast = call(pipe, image=picture)
        other = call(pipe, image=1 - picture)
    assert len(calls) == 2 * len(KEYS)
    assert not torch.allclose(fast, other), "the picture must still matter"
    handle.remove()


def test_pipelines_that_do_not_fit_are_refused() -> None:
    with (
        pytest.raises(UserError, match="transformers"),
        accelerated(DiTPipeline(transformer(), autoencoder(), DDIMScheduler()), KEYS),
    ):
        pass
    with (
        pytest.raises(UserError, match="once a step"),
        accelerated(stable_diffusion(HeunDiscreteScheduler(steps_offset=1)), KEYS),
    ):
        pass


def test_blocks_of_diffusers_are_found() -> None:
    network = unet()
    assert block_paths(network)["up.0"] == "up_blocks.1"
    text = torch.randn(1, 5, 16)
    found = feature_change(network, Guided(from_diffusers(network)), ddim(), torch.randn(1, 4, 8, 8), text)
    assert all(len(values) == STEPS - 1 for values in found.change.values())
    assert found.mean("down.0", "down.1") > 0
