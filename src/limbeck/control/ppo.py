"""Proximal policy optimisation on gymnasium vector environments, with or without an intrinsic reward.

Source: Schulman et al., arXiv:1707.06347; the details are the customary ones (minibatches, advantage normalisation,
gradient clipping, Adam with epsilon 1e-5).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.control.arrivals import arrivals, autoreset_mode
from limbeck.control.intrinsic import IntrinsicReward, NoBonus, checked
from limbeck.control.mixer import RewardMixer, Rollout
from limbeck.control.normalise import RunningMoments
from limbeck.control.policies import ActorCritic
from limbeck.errors import UserError

#: Called after every step with (states arrived at, infos, valid): coverage is counted so.
Watcher = Callable[[NDArray[Any], Mapping[str, Any], NDArray[Any]], None]


@dataclass(frozen=True)
class PPOSettings:
    """Numbers of PPO.

    Attributes:
        rollout: steps per environment between updates.
        epochs, minibatches: passes over a rollout, and parts of each.
        clip: of the probability ratio. ``rate``: of Adam. ``discount``, ``decay``: gamma and lambda.
        entropy, value_weight: weights of the two further terms. ``max_norm``: of the gradient.
        visits: states per update of the intrinsic reward.
    """

    rollout: int = 128
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    rate: float = 3e-4
    discount: float = 0.99
    decay: float = 0.95
    entropy: float = 0.01
    value_weight: float = 0.5
    max_norm: float = 0.5
    visits: int = 64


class PPO:
    """Collects rollouts, pays bonuses for the states arrived at, and improves the policy.

    A rollout's bonuses are read first, as the states were before it, and then every state counts as one visit. Time
    limits bootstrap from the true last state, terminations do not. The returns in :attr:`episodes` are the world's
    alone.

    Args:
        environments: gymnasium vector environment, ``SAME_STEP`` or ``NEXT_STEP``, with one array as observation.
        network: policy and values, with as many heads as the mixer has streams.
        intrinsic: what pays; nothing by default.
        mixer: how it is mixed.
        settings: numbers.
        moments: whitens the agent's observations; None leaves them.
        states: from observations ``[N, ...]`` to what ``intrinsic`` sees; a float tensor by default.
        seed: of actions and minibatches, and of the environments' first reset.
    """

    def __init__(
        self,
        environments: Any,
        network: ActorCritic,
        *,
        intrinsic: IntrinsicReward | None = None,
        mixer: RewardMixer | None = None,
        settings: PPOSettings | None = None,
        moments: RunningMoments | None = None,
        states: Callable[[NDArray[Any]], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.environments, self.network = environments, network
        self.intrinsic, self.mixer = intrinsic or NoBonus(), mixer or RewardMixer()
        self.settings, self.moments = settings or PPOSettings(), moments
        self.states = states or (lambda observations: torch.as_tensor(observations).float())
        self.mode = autoreset_mode(environments)
        if self.mode == "Disabled":
            raise UserError("environments", "autoreset mode DISABLED", "SAME_STEP, NEXT_STEP")
        if network.critic.out_features != self.mixer.heads:
            raise UserError("network", f"{network.critic.out_features} value heads", f"{self.mixer.heads}")
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=self.settings.rate, eps=1e-5, fused=True)
        self.count = environments.num_envs
        self.steps = 0
        self.episodes: dict[str, list[float]] = {"steps": [], "return": [], "length": [], "bonus": []}
        self.watchers: list[Watcher] = []
        self._observations, _ = environments.reset(seed=seed)
        self._ended = np.zeros(self.count, dtype=bool)
        self._running = np.zeros((3, self.count))

    def learn(self, steps: int) -> list[dict[str, float]]:
        """Whole rollouts until ``steps`` more environment steps are done; returns what each update measured."""
        goal, found = self.steps + steps, []
        while self.steps < goal:
            found.append(self.improve(*self.collect()))
        return found

    def _seen(self, observations: NDArray[Any]) -> Tensor:
        seen = checked(torch.as_tensor(observations).float())
        return seen if self.moments is None else self.moments(seen)

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, dict[str, Tensor]]:
        """Act for one rollout, read and learn its bonuses; returns it and what the policy's update needs."""
        network, kept = self.network, _Lists()
        for _ in range(self.settings.rollout):
            if self.moments is not None:
                self.moments.update(torch.as_tensor(self._observations).float())
            seen = self._seen(self._observations)
            parameters, values = network(seen)
            raw = network.actions.sample(parameters, self.generator)
            step = self.environments.step(network.actions.to_environment(raw))
            observations, rewards, terminated, truncated, infos = step
            ended = np.asarray(terminated) | np.asarray(truncated)
            found, valid = arrivals(self.mode, observations, infos, ended, self._ended)
            for watch in self.watchers:
                watch(found, infos, valid)
            arrived_values = values.new_zeros(values.shape)
            last = torch.from_numpy(ended & valid)
            if bool(last.any()):
                arrived_values[last] = network.values(self._seen(found[last.numpy()]))
            kept.add(
                seen=seen,
                raw=raw,
                log_prob=network.actions.log_prob(parameters, raw),
                values=values,
                arrived_values=arrived_values,
                arrived=self.states(found),
                rewards=torch.as_tensor(rewards, dtype=torch.float32) * torch.from_numpy(valid),
                terminated=torch.from_numpy(np.asarray(terminated) & valid),
                # A step that only resets ends nothing and carries nothing over.
                ended=torch.from_numpy(ended | ~valid),
                valid=torch.from_numpy(valid),
            )
            self._observations, self._ended = observations, ended
        batch = kept.stacked()
        following = torch.cat([batch["values"][1:], network.values(self._seen(self._observations))[None]])
        intrinsic = self._pay(batch["arrived"], batch["valid"])
        self._tally(batch, intrinsic)
        ended = batch["ended"][..., None]
        rollout = Rollout(
            extrinsic=batch["rewards"],
            intrinsic=intrinsic,
            values=batch["values"],
            arrival_values=torch.where(ended, batch["arrived_values"], following),
            seen_values=following,
            terminated=batch["terminated"],
            ended=batch["ended"],
        )
        return rollout, batch

    def _pay(self, arrived: Tensor, valid: Tensor) -> Tensor:
        """Bonuses ``[T, N]`` of a rollout, then its visits in the order of time."""
        visited = arrived[valid]
        intrinsic = torch.zeros(valid.shape)
        self.intrinsic.observe(visited)
        intrinsic[valid] = self.intrinsic.bonus(visited).float().cpu()
        with torch.enable_grad():
            for part in visited.split(self.settings.visits):
                self.intrinsic.update(part)
        return intrinsic

    def _tally(self, batch: Mapping[str, Tensor], intrinsic: Tensor) -> None:
        """Returns of the episodes that ended: of the world, and of bonuses, apart."""
        rewards, valid, bonuses = batch["rewards"].numpy(), batch["valid"].numpy(), intrinsic.numpy()
        finished = (batch["ended"] & batch["valid"]).numpy()
        for time in range(len(rewards)):
            self.steps += int(valid[time].sum())
            self._running += np.stack([rewards[time], valid[time], bonuses[time]])
            for index in np.flatnonzero(finished[time]):
                total, length, bonus = self._running[:, index]
                for name, value in zip(self.episodes, (self.steps, total, length, bonus)):
                    self.episodes[name].append(float(value))
                self._running[:, index] = 0.0

    def improve(self, rollout: Rollout, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Several passes of clipped policy improvement over one rollout."""
        settings, network, valid = self.settings, self.network, batch["valid"]
        advantages, targets = self.mixer.advantages(rollout, discount=settings.discount, decay=settings.decay)
        rows = {name: batch[name][valid] for name in ("seen", "raw", "log_prob")}
        advantages, targets = advantages[valid], targets[valid]
        sums = dict.fromkeys(("policy", "value", "entropy", "ratio_clipped", "kl"), 0.0)
        size = max(2, -(-len(advantages) // settings.minibatches))
        updates = 0
        for _ in range(settings.epochs):
            for chosen in torch.randperm(len(advantages), generator=self.generator).split(size):
                parameters, values = network(rows["seen"][chosen])
                log_ratio = network.actions.log_prob(parameters, rows["raw"][chosen]) - rows["log_prob"][chosen]
                ratio, gain = log_ratio.exp(), _standardised(advantages[chosen])
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                policy = -torch.minimum(ratio * gain, clipped * gain).mean()
                value = 0.5 * (values - targets[chosen]).square().sum(dim=-1).mean()
                entropy = network.actions.entropy(parameters, self.generator).mean()
                loss = policy + settings.value_weight * value - settings.entropy * entropy
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), settings.max_norm)
                self.optimizer.step()
                with torch.no_grad():
                    outside = ((ratio - 1).abs() > settings.clip).float().mean()
                    measured = (policy, value, entropy, outside, (ratio - 1 - log_ratio).mean())
                for name, number in zip(sums, measured):
                    sums[name] += float(number.detach())
                updates += 1
        means = {name: number / updates for name, number in sums.items()}
        return means | {"steps": float(self.steps), "bonus": float(rollout.intrinsic[valid].mean())}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, the environments' state included where they can give one.

        Environments without ``state_dict`` are reset on loading, which no other part notices but which is not exact;
        :class:`~limbeck.control.seeded.SeededVectorEnv` makes any deterministic environment exact.
        """
        inner = getattr(self.environments, "state_dict", None)
        return {
            "network": {name: value.clone() for name, value in self.network.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "intrinsic": self.intrinsic.state_dict(),
            "mixer": self.mixer.state_dict(),
            "moments": None if self.moments is None else self.moments.state_dict(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "episodes": {name: list(values) for name, values in self.episodes.items()},
            "running": torch.from_numpy(self._running.copy()),
            "environments": None if inner is None else inner(),
            "observations": torch.from_numpy(np.array(self._observations)),
            "ended": torch.from_numpy(self._ended.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave, into an agent made in the same way."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.intrinsic.load_state_dict(state["intrinsic"])
        self.mixer.load_state_dict(state["mixer"])
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])
        self.generator.set_state(state["generator"])
        self.steps = int(state["steps"])
        self.episodes = {name: list(values) for name, values in state["episodes"].items()}
        self._running = state["running"].numpy().copy()
        if state["environments"] is None:
            self._observations, _ = self.environments.reset()
            self._ended, self._running = np.zeros(self.count, dtype=bool), np.zeros((3, self.count))
            return
        self.environments.load_state_dict(state["environments"])
        self._observations = state["observations"].numpy().copy()
        self._ended = state["ended"].numpy().copy()


class _Lists(dict[str, list[Tensor]]):
    """What every step of a rollout gives, by name."""

    def add(self, **step: Tensor) -> None:
        for name, value in step.items():
            self.setdefault(name, []).append(value)

    def stacked(self) -> dict[str, Tensor]:
        return {name: torch.stack(values) for name, values in self.items()}


def _standardised(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)


@torch.no_grad()
def play(
    environments: Any, network: ActorCritic, episodes: int, *, moments: RunningMoments | None = None, seed: int = 0
) -> list[float]:
    """Returns of ``episodes`` whole episodes with the best actions; nothing is learnt, counted or paid."""
    mode = autoreset_mode(environments)
    returns: list[float] = []
    observations, _ = environments.reset(seed=seed)
    running = np.zeros(environments.num_envs)
    reset = np.zeros(environments.num_envs, dtype=bool)
    while len(returns) < episodes:
        seen = checked(torch.as_tensor(observations).float())
        parameters, _ = network(seen if moments is None else moments(seen))
        actions = network.actions.to_environment(network.actions.best(parameters))
        observations, rewards, terminated, truncated, _ = environments.step(actions)
        ended = np.asarray(terminated) | np.asarray(truncated)
        running += np.where(reset & (mode == "NextStep"), 0.0, rewards)
        for index in np.flatnonzero(ended):
            returns.append(float(running[index]))
            running[index] = 0.0
        reset = ended
        if mode == "Disabled" and ended.any():
            observations, _ = environments.reset(options={"reset_mask": ended})
    return returns[:episodes]
