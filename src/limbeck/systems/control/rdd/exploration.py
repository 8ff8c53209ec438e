"""Part B: PPO that explores by RDD, its rivals and its oracle, on a chain in numpy and on minigrid.

Every arm is the same agent with the same seeds, layouts and numbers; only what pays the bonus differs. All successes
and returns are the world's; the bonus is in none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from limbeck.control import DeepSeaVector, ExactCounts, NoBonus, PPOSettings, Visits, drnd, rnd
from limbeck.control.coverage import first_success, regret, steps_to_share
from limbeck.control.learning import Replay
from limbeck.control.ppo import PPO
from limbeck.experiment import Arm, Claim, Experiment, Outcome, pictures

from .doorkey import VIEW, Progress, ViewBody, doorkey, one_hot_view
from .method import RDD, explorer

ENVIRONMENTS, WINDOW = 16, 100

COMMON = {
    "ppo": Arm(lambda shape, seed: NoBonus(), "PPO without a bonus", "none"),
    "rnd": Arm(lambda shape, seed: rnd(shape, seed=seed), "PPO + RND", "rival"),
    "drnd": Arm(lambda shape, seed: drnd(shape, seed=seed), "PPO + DRND, 10 targets", "rival"),
    "count": Arm(lambda shape, seed: ExactCounts(), "PPO + 1/n by exact counts of observations", "rival"),
    "rdd": Arm(lambda shape, seed: RDD(shape, seed=seed), "PPO + RDD as published: sigma 1, online", "method"),
    "rdd-0.1": Arm(lambda shape, seed: RDD(shape, sigma=0.1, seed=seed), "PPO + RDD, sigma 0.1", "ablation"),
    "rdd-sample": Arm(
        lambda shape, seed: RDD(shape, readout="sample", seed=seed),
        "PPO + RDD read against the sample: noise of the same size that tells nothing",
        "control",
    ),
}
REPLAY = Arm(
    lambda shape, seed: RDD(shape, learning=Replay(2e-3, steps=2, batch_size=512), seed=seed),
    "PPO + RDD, sigma 1, least squares over all visits",
    "ablation",
)


class Exploration(Experiment):
    """What the two worlds share: episodes to success, and how the curves are kept."""

    metric = "steps_to_success"
    budget = 60_000
    smoke_budget = 4_096

    @property
    def steps(self) -> int:
        """Environment steps of an arm."""
        return self.budget if self.size == "full" else self.smoke_budget

    def measures(self, agent: PPO, best: float) -> dict[str, float]:
        """Steps to the first success and to 50% of the last 100 episodes (the budget where never), and the end."""
        ends, returns = [int(step) for step in agent.episodes["steps"]], agent.episodes["return"]
        success = [float(value > 0) for value in returns]
        return {
            "steps_to_success": float(steps_to_share(ends, success, self.steps, window=WINDOW)),
            "first_success": float(first_success(ends, success, self.steps)),
            "final_success": float(np.mean(success[-WINDOW:])) if success else 0.0,
            "final_return": float(np.mean(returns[-WINDOW:])) if returns else 0.0,
            "regret": regret(returns, best),
        }


def success_curve(agent: PPO, budget: int, points: int = 20) -> list[float]:
    """Share of successes in each of ``points`` equal stretches of the run."""
    ends = np.asarray(agent.episodes["steps"])
    success = np.asarray(agent.episodes["return"]) > 0
    stretch = np.minimum((ends / budget * points).astype(int), points - 1)
    return [float(success[stretch == index].mean()) if (stretch == index).any() else 0.0 for index in range(points)]


def bonus_ranks(agent: PPO, visits: Visits) -> dict[str, float]:
    """What the final bonus of every cell of the sea says of its visits.

    ``count_rank``: Spearman correlation with minus the visits, 0 where none is paid. ``unseen_rank``: mean place of the
    cells that were never visited in the order of bonuses, 1 for the best paid; absent where all were visited or none is
    paid. The first cell is left out: it is where episodes begin, so nobody is paid for arriving there.
    """
    side = len(visits.counts)
    rows, columns = (axis[1:] for axis in np.tril_indices(side))
    bonus = agent.intrinsic.bonus(torch.eye(side * side)[rows * side + columns]).numpy()
    numbers = visits.counts[rows, columns]
    if np.ptp(bonus) == 0:
        return {"count_rank": 0.0}
    found = {"count_rank": float(spearmanr(bonus, -numbers).statistic)}
    if (numbers == 0).any():
        found["unseen_rank"] = float((rankdata(bonus)[numbers == 0] / len(bonus)).mean())
    return found


class DeepSeaExperiment(Exploration):
    """A chain of 14: a random walk finds the treasure once in 16,384 episodes, and 60,000 steps are 4,285 episodes."""

    title = "DeepSea, a chain of 14"
    testbed = "DeepSea 14 x 14"
    side = 14
    arms = {**COMMON, "rdd-replay": REPLAY}
    claims = (
        Claim("RDD covers more of the chain than PPO alone", "rdd", "ppo", "coverage", 0.02,
              source="[abstract] effective in online exploration"),
        Claim("RDD learns the way to the treasure sooner than PPO alone", "rdd", "ppo", "steps_to_success", 3_000,
              "lower", "[abstract] effective in online exploration"),
        Claim("RDD learns the way to the treasure in at most 90% of RND's steps", "rdd", "rnd", "steps_to_success_log",
              -float(np.log(0.9)), "lower", "[ours] the sheet"),
        Claim("RDD covers more of the chain than RND", "rdd", "rnd", "coverage", source="[notes]"),
        Claim("RDD covers more of the chain than DRND", "rdd", "drnd", "coverage", source="[notes]"),
        Claim("RDD is not slower than the count oracle by more than 6,000 steps", "rdd", "count", "steps_to_success",
              -6_000, "lower", "[ours] decay like a pseudo-count"),
        Claim("RDD needs its read-out: against the sample it is slower", "rdd", "rdd-sample", "steps_to_success",
              3_000, "lower", "[sheet] the commonest error"),
        Claim("Least squares over all visits makes RDD faster than online training", "rdd-replay", "rdd",
              "steps_to_success", 3_000, "lower", "[ours] the sheet, part A"),
        Claim("RDD by least squares learns sooner than RND", "rdd-replay", "rnd", "steps_to_success", 0.0, "lower",
              "[ours] the sheet, part A"),
        Claim("Sigma of the order of the target's spread is faster than sigma 1", "rdd-0.1", "rdd", "steps_to_success",
              3_000, "lower", "[sheet] pitfall"),
    )  # fmt: skip

    def run(self, arm: str, seed: int) -> Outcome:
        """Explore one layout; every seed has its own."""
        side = self.side if self.size == "full" else 6
        world = DeepSeaVector(ENVIRONMENTS, side, layout=seed)
        agent = explorer(
            world,
            self.arms[arm].setting((side * side,), seed),
            settings=PPOSettings(rollout=64, visits=32),
            seed=seed,
        )
        visits, coverage = Visits((side, side), world.sea.cells), []
        agent.watchers.append(lambda arrived, infos, valid: visits.add(infos["cells"]))
        while agent.steps < self.steps:
            agent.learn(self.steps // 20)
            coverage.append(visits.coverage)
        found = self.measures(agent, world.sea.best_return)
        found["steps_to_success_log"] = float(np.log(found["steps_to_success"]))
        found |= {"coverage": visits.coverage, "evenness": visits.evenness} | bonus_ranks(agent, visits)
        shown = {}
        if seed == 0:
            map_ = np.where(np.tri(side, dtype=bool), visits.counts, np.nan)
            shown["Visits to the cells of the sea (logarithmic; treasure at the lower right)"] = pictures.heat_map(
                map_, logarithmic=True, top=self.steps / side, enlarge=10
            )
        curves = {"coverage": coverage, "success": success_curve(agent, self.steps)}
        return Outcome(found, curves=curves, pictures=shown)


class MiniGrid(Exploration):
    """DoorKey of 5 x 5 cells with a new layout every episode, seen through the agent's 7 x 7 view."""

    title = "minigrid, DoorKey 5 x 5"
    testbed = "MiniGrid-DoorKey-5x5-v0"
    budget = 25_000
    side = 5
    arms = COMMON
    claims = (
        Claim("RDD opens doors to the goal sooner than PPO alone", "rdd", "ppo", "steps_to_success", 1_250, "lower",
              "[abstract] effective in online exploration"),
        Claim("RDD learns in at most 90% of RND's steps", "rdd", "rnd", "steps_to_success_log",
              -float(np.log(0.9)), "lower", "[ours] the sheet"),
        Claim("RDD learns sooner than DRND", "rdd", "drnd", "steps_to_success", 0.0, "lower", "[notes]"),
        Claim("RDD sees more different views than PPO alone", "rdd", "ppo", "views", 0.0, source="[notes]"),
        Claim("RDD is not slower than exact counts of views by more than 2,500 steps", "rdd", "count",
              "steps_to_success", -2_500, "lower", "[ours] decay like a pseudo-count"),
        Claim("RDD needs its read-out: against the sample it is slower", "rdd", "rdd-sample", "steps_to_success",
              1_250, "lower", "[sheet] the commonest error"),
        Claim("A smaller sigma is faster than sigma 1", "rdd-0.1", "rdd", "steps_to_success", 1_250, "lower",
              "[sheet] pitfall"),
    )  # fmt: skip

    def run(self, arm: str, seed: int) -> Outcome:
        """Explore; layouts differ from episode to episode and are the same for every arm of a seed."""
        world = doorkey(self.side, ENVIRONMENTS, seed)
        agent = explorer(
            world,
            self.arms[arm].setting((VIEW,), seed),
            coefficient=0.01,
            settings=PPOSettings(rollout=32, epochs=6, rate=1e-3, visits=64),
            body=ViewBody,
            states=lambda views: one_hot_view(torch.from_numpy(views)),
            seed=seed,
        )
        progress = Progress(world, self.side)
        agent.watchers.append(progress)
        agent.learn(self.steps)
        found: dict[str, Any] = self.measures(agent, 1.0)
        found["steps_to_success_log"] = float(np.log(found["steps_to_success"]))
        found |= {f"{name}_rate": float(np.mean(rates[-WINDOW:] or [0.0])) for name, rates in progress.rates.items()}
        found["views"] = float(len(progress.views))
        shown = {}
        if seed == 0:
            inside = progress.visits.counts[1:-1, 1:-1].astype(float)
            shown["Where the agent stood, all layouts (logarithmic; goal at the lower right)"] = pictures.heat_map(
                inside, logarithmic=True, enlarge=30
            )
        return Outcome(found, curves={"success": success_curve(agent, self.steps)}, pictures=shown)
