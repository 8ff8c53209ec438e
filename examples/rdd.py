"""An exploration bonus for somebody else's loop: wrap the vector environment, leave the loop as it is.

The loop below is a plain REINFORCE of the kind one finds in tutorials; it knows nothing of bonuses. The environments
are minigrid's own, seen as images of pixels, and the bonus is RDD with convolutions, made from nothing and tiny.

    python examples/rdd.py
"""

from __future__ import annotations

import gymnasium
import minigrid  # noqa: F401 - registers its environments with gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper
from torch import nn

from limbeck.control import BonusVectorEnv, RunningMoments, conv_network
from limbeck.systems.control.rdd.method import RDD

ENVIRONMENTS, PIXELS = 4, 28


def make() -> gymnasium.Env:
    """The agent's view as 28 x 28 colour pixels."""
    return ImgObsWrapper(RGBImgPartialObsWrapper(gymnasium.make("MiniGrid-DoorKey-5x5-v0"), tile_size=4))


def plain_loop(environments: gymnasium.vector.VectorEnv, policy: nn.Module, steps: int) -> float:
    """Somebody else's: act, collect rewards, raise the chance of what paid more than the others."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    observations, _ = environments.reset(seed=0)
    total = 0.0
    for _ in range(steps):
        chances = torch.distributions.Categorical(logits=policy(torch.as_tensor(observations).float() / 255))
        actions = chances.sample()
        observations, rewards, *_ = environments.step(actions.numpy())
        gains = torch.as_tensor(rewards - rewards.mean()).float()
        loss = -(chances.log_prob(actions) * gains).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(rewards.mean())
    return total / steps


def main(steps: int = 60) -> dict[str, float]:
    torch.manual_seed(0)
    shape = (PIXELS, PIXELS, 3)
    bonus = RDD(
        shape,
        size=32,
        network=lambda: conv_network(shape, 32, channels=(8, 16), hidden=(64,)),
        moments=RunningMoments(shape, clip=5.0),
    )
    # NEXT_STEP is gymnasium's default; the wrapper takes it, SAME_STEP and DISABLED alike.
    world = SyncVectorEnv([make] * ENVIRONMENTS, autoreset_mode=AutoresetMode.NEXT_STEP)
    world = BonusVectorEnv(
        world, bonus, coefficient=0.1, states=lambda seen: torch.as_tensor(seen).float() / 255, warm_up=10
    )
    policy = conv_network(shape, 7, channels=(8, 16), hidden=(32,))
    paid = plain_loop(world, policy, steps)

    with world.evaluation():  # bonuses are read, nothing is learnt
        *_, infos = world.step(np.zeros(ENVIRONMENTS, dtype=np.int64))
    return {
        "paid": paid,
        "world": float(infos["extrinsic_reward"].mean()),
        "bonus": float(infos["intrinsic_reward"].mean()),
        "visits": float(bonus.learning.updates * ENVIRONMENTS),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:8s} {value:.4f}")
