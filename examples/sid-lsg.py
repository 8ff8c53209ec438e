"""Few-step SiD with the real classes: diffusers' UNet2DConditionModel that predicts v, its scheduler, real latents.

Random weights at tiny size, so nothing is downloaded and the images are noise; put your own pipeline's parts in.
"""

from __future__ import annotations

import copy

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from limbeck.data.loaders import TensorLoader
from limbeck.diffusion.denoiser import from_diffusers
from limbeck.diffusion.noise import DiscreteSchedule, prediction_of
from limbeck.diffusion.scores import Scores
from limbeck.engine import fit
from limbeck.schedules import HalfLife
from limbeck.systems.diffusion.sid_lsg.guidance import Guidance
from limbeck.systems.diffusion.sid_lsg.method import SiD, few_steps
from limbeck.systems.diffusion.sid_lsg.sharing import Adversarial

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
    attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
).eval()  # fmt: skip
scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
schedule, prediction = DiscreteSchedule.from_diffusers(scheduler), prediction_of(scheduler)
texts, null = torch.randn(32, 5, 16), torch.zeros(5, 16)
STEPS = 4

for name, guidance, real in (
    ("long and short, k = 1.5", Guidance.lsg(1.5), False),
    ("Zero-CFG with real latents", Guidance.zero_cfg(), True),
):
    teacher = from_diffusers(copy.deepcopy(unet))
    generator = few_steps(from_diffusers(copy.deepcopy(unet)), schedule, steps=2, prediction=prediction)
    scores = Scores.full(teacher, schedule=schedule, prediction=prediction, null=null)
    distiller = SiD(
        generator, scores, (4, 8, 8), guidance=guidance, average=HalfLife(100, STEPS), steps=STEPS,
        adversarial=Adversarial(adversarial_from=2) if real else None,
    )  # fmt: skip
    data = {"input": texts, "id": torch.arange(32), **({"real": torch.randn(32, 4, 8, 8)} if real else {})}
    # A batch holds the prompts of both turns: 4 for the fake score, 4 for the generator.
    history = fit(distiller, TensorLoader(data, 8), steps=STEPS, log_every=1, accelerator="cpu")
    with torch.no_grad():
        made = distiller.finish()(torch.randn(2, 4, 8, 8), texts[:2])
    print(f"{name}: {', '.join(n for n in history.names() if n != 'loss')}; 2 calls give {list(made.shape)}")
