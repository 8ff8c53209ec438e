from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine import OptimizerSettings, Players, Turn, fit
from limbeck.errors import UserError
from limbeck.sources import EMA, Live
from tests.engine.helpers import INPUT, equal, loader

SETTINGS = {
    "maker": OptimizerSettings("adam", lr=0.01, schedule="constant", betas=(0.0, 0.9)),
    "critic": OptimizerSettings("sgd", lr=0.02, schedule="constant"),
}


def linear(seed: int, made: int = 8) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(8, made)


class Game(Players):
    """The critic moves ``times`` times; the maker every ``every`` steps, through the critic as it then is."""

    def __init__(self, *, times: int = 1, every: int = 1, **options: Any) -> None:
        super().__init__(SETTINGS, **options)
        self.maker, self.critic = linear(0), linear(1, 1)
        self.times, self.every = times, every
        self.sources = {"average": EMA(self.maker, 0.5), "teacher": Live(linear(2))}
        self.followed = {"average": self.maker}

    def weights_of(self, player: str) -> list[nn.Parameter]:
        return list(getattr(self, player).parameters())

    def turns(self, batch: Any) -> Iterator[Turn]:
        made = self.maker(batch["input"] + 0.1 * torch.randn(len(batch["input"]), 8))
        for _ in range(self.times):
            yield Turn("critic", {"judge": critic_loss(self.critic, made.detach())})
        if self.steps_done % self.every == 0:
            yield Turn("maker", {"fool": self.critic(made).mean()}, {"size": made.square().mean()})


def critic_loss(critic: nn.Module, made: Tensor) -> Tensor:
    loss: Tensor = (critic(made) - 1).square().mean()
    return loss


def by_hand(steps: int, times: int, every: int, clip: float | None) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    maker, critic = linear(0), linear(1, 1)
    average = [weight.detach().clone() for weight in maker.parameters()]
    built = {
        name: SETTINGS[name].build(network.parameters(), steps)
        for name, network in (("maker", maker), ("critic", critic))
    }
    torch.manual_seed(5)
    batches = loader()
    done = 0
    while done < steps:
        for batch in batches:
            if done == steps:
                break
            made = maker(batch["input"] + 0.1 * torch.randn(len(batch["input"]), 8))
            for _ in range(times):
                move(built["critic"][0], critic_loss(critic, made.detach()), clip)
            if done % every == 0:
                move(built["maker"][0], critic(made).mean(), clip)
            for _, schedule in built.values():
                schedule.step()
            average = [0.5 * old + 0.5 * new.detach() for old, new in zip(average, maker.parameters(), strict=True)]
            done += 1
    return maker, critic, average


def move(optimizer: torch.optim.Optimizer, loss: Tensor, clip: float | None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


@pytest.mark.parametrize(("times", "every", "clip"), [(1, 1, None), (3, 1, 0.05), (2, 3, None)])
def test_turns_are_a_hand_written_loop_bit_for_bit(times: int, every: int, clip: float | None) -> None:
    maker, critic, average = by_hand(7, times, every, clip)
    module = Game(times=times, every=every)
    history = fit(module, loader(), steps=7, seed=5, gradient_clip=clip, log_every=1, accelerator="cpu")
    assert history.steps == module.steps_done == 7
    assert equal(module.maker.state_dict(), maker.state_dict())
    assert equal(module.critic.state_dict(), critic.state_dict())
    followed: Any = module.sources["average"]
    for weight, expected in zip(followed.model.parameters(), average, strict=True):
        torch.testing.assert_close(weight, expected)
    assert {"critic/judge", "critic/loss", "maker/fool", "maker/size", "loss"} <= set(history.names())


def test_resume_goes_on_bit_for_bit_with_the_average(tmp_path: Path) -> None:
    whole = Game(times=2, every=2)
    fit(whole, loader(), steps=8, seed=5, accelerator="cpu")
    first = Game(times=2, every=2)
    fit(first, loader(), epochs=1, seed=5, out=tmp_path, accelerator="cpu")
    second = Game(times=2, every=2)
    fit(second, loader(), epochs=2, seed=5, out=tmp_path, resume=True, accelerator="cpu")
    assert equal(whole.maker.state_dict(), second.maker.state_dict())
    ours, theirs = (module.sources["average"] for module in (whole, second))
    assert equal(ours.model.state_dict(), theirs.model.state_dict())  # type: ignore[attr-defined]
    assert not any("sources" in name or "teacher" in name for name in second.state_dict())

    other = Game(times=2, every=2)
    other.sources["teacher"] = Live(linear(9))
    with pytest.raises(UserError, match="teacher"):
        fit(other, loader(), epochs=3, seed=5, out=tmp_path, resume=True, accelerator="cpu")


def test_a_step_without_turns_or_of_a_stranger_is_refused() -> None:
    class Idle(Game):
        def turns(self, batch: Any) -> Iterator[Turn]:
            yield from ()

    class Stranger(Game):
        def turns(self, batch: Any) -> Iterator[Turn]:
            yield Turn("judge", {"loss": self.critic(INPUT).mean()})

    for kind, words in ((Idle, "turns"), (Stranger, "judge")):
        with pytest.raises(UserError, match=words):
            fit(kind(), loader(), steps=1, accelerator="cpu")
