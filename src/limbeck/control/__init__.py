"""Control: intrinsic rewards that anybody's loop can use, PPO, a few environments, and measures of exploration.

Everything below is imported when it is first used; what needs gymnasium says so (extra ``control``).

| part | is |
|---|---|
| :class:`IntrinsicReward` | the contract: ``observe``, ``update``, ``bonus``, ``state_dict`` |
| :class:`RandomDistillation` | predictor against a random target: RND, DRND, coin flips, RDD |
| :class:`ExactCounts`, :class:`HashCounts` | counters, the rivals that need no network |
| :class:`RewardMixer` | coefficient, one stream or two, episodic or not, normalised |
| :class:`BonusVectorEnv` | a gymnasium vector environment that pays bonuses, for a loop of one's own |
| :class:`PPO`, :class:`ActorCritic` | an agent, discrete or continuous |
| :class:`SeededVectorEnv`, :class:`DeepSeaVector` | vector environments whose state can be kept and put back |
| :class:`Visits` | coverage |
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.control.bonus_env import BonusVectorEnv
    from limbeck.control.counts import ExactCounts, HashCounts
    from limbeck.control.coverage import Visits
    from limbeck.control.deep_sea import DeepSea, DeepSeaVector
    from limbeck.control.intrinsic import IntrinsicReward, NoBonus
    from limbeck.control.learning import Online, Replay
    from limbeck.control.mixer import RewardMixer
    from limbeck.control.networks import conv_network, perceptron
    from limbeck.control.normalise import ReturnScale, RunningMoments
    from limbeck.control.policies import ActorCritic
    from limbeck.control.ppo import PPO, PPOSettings
    from limbeck.control.random_networks import RandomDistillation, coin_flips, drnd, rnd
    from limbeck.control.seeded import SeededVectorEnv
    from limbeck.control.targets import CoinTarget, EnsembleTarget, FixedTarget, GaussianTarget

_HOMES = {
    "bonus_env": ("BonusVectorEnv",),
    "counts": ("ExactCounts", "HashCounts"),
    "coverage": ("Visits",),
    "deep_sea": ("DeepSea", "DeepSeaVector"),
    "intrinsic": ("IntrinsicReward", "NoBonus"),
    "learning": ("Online", "Replay"),
    "mixer": ("RewardMixer",),
    "networks": ("conv_network", "perceptron"),
    "normalise": ("ReturnScale", "RunningMoments"),
    "policies": ("ActorCritic",),
    "ppo": ("PPO", "PPOSettings"),
    "random_networks": ("RandomDistillation", "coin_flips", "drnd", "rnd"),
    "seeded": ("SeededVectorEnv",),
    "targets": ("CoinTarget", "EnsembleTarget", "FixedTarget", "GaussianTarget"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "PPO", "ActorCritic", "BonusVectorEnv", "CoinTarget", "DeepSea", "DeepSeaVector", "EnsembleTarget", "ExactCounts",
    "FixedTarget", "GaussianTarget", "HashCounts", "IntrinsicReward", "NoBonus", "Online", "PPOSettings",
    "RandomDistillation", "Replay", "ReturnScale", "RewardMixer", "RunningMoments", "SeededVectorEnv", "Visits",
    "coin_flips", "conv_network", "drnd", "perceptron", "rnd",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
