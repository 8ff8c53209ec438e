"""How the diffusion testbeds' denoisers are trained and measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from limbeck.data.split import Split
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.nn.transfer import WeightTransfer, shadow_of
from limbeck.testbeds.recipe import frozen, warm_cosine


@dataclass(frozen=True)
class DiffusionRecipe:
    """Training of a denoiser: mean squared error of eps at times drawn evenly.

    Attributes:
        steps, batch_size, learning_rate: AdamW with a warm start and a cosine to zero.
        null: share of conditions that become null.
        momentum: of the average of weights, which is what is kept.
        seed: of weights, order, times and noise. version: raised when the loop changes what it makes.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    null: float = 0.1
    momentum: float = 0.999
    seed: int = 0
    version: int = 1


def train_denoiser(
    model: nn.Module, samples: Split, schedule: DiscreteSchedule, recipe: DiffusionRecipe, *, null: int
) -> nn.Module:
    """Train ``model`` to predict eps and return the average of its weights, in eval mode.

    ``null`` is the class number of the null condition.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    average = shadow_of(model)
    follow = WeightTransfer(model, average, momentum=recipe.momentum)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step / recipe.steps, 0.02))
    images, labels = torch.as_tensor(samples.input), samples.labels
    model.train()
    for _ in range(recipe.steps):
        index = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        x0, condition = images[index], labels[index]
        # Half of the images are mirrored: clothing looks the same either way.
        mirrored = torch.rand(len(x0), generator=generator) < 0.5
        x0 = torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(3), x0)
        condition = torch.where(torch.rand(len(x0), generator=generator) < recipe.null, null, condition)
        t = torch.randint(len(schedule), (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        loss = functional.mse_loss(model(schedule.add_noise(x0, noise, t), t, condition), noise)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        follow()
    return frozen(average)


@torch.inference_mode()
def denoising_loss(model: nn.Module, split: Split, schedule: DiscreteSchedule, batch_size: int = 250) -> float:
    """Mean squared error of eps over ``split``, at times spread evenly and noises of a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for batch in split.batches(batch_size):
        x0 = batch["input"]
        t = torch.linspace(0, len(schedule) - 1, len(x0)).round().long()
        noise = torch.randn(x0.shape, generator=generator)
        output = model(schedule.add_noise(x0, noise, t), t, batch["target"])
        total += float(functional.mse_loss(output, noise, reduction="sum")) / noise[0].numel()
    return total / len(split)
