from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from limbeck.engine import OptimizerSettings, PeerDistiller, fit
from limbeck.errors import LimbeckError, UserError
from limbeck.objectives import KL, CrossEntropy, FeatureMSE, Objective, total
from limbeck.schedules import Linear
from tests.engine.helpers import BATCHES, INPUT, TARGET, equal, loader, network, objective

BATCH = {"input": INPUT[:8], "target": TARGET[:8], "id": torch.arange(8)}


def peers(goal: Any = objective, **options: Any) -> PeerDistiller:
    networks = {"a": network(1), "b": network(2, width=24)}
    settings = {"a": OptimizerSettings(lr=0.05), "b": OptimizerSettings("sgd", lr=0.02, schedule="linear")}
    return PeerDistiller(networks, {"a": goal(), "b": goal()}, **{"optimizers": settings, **options})


def by_hand(update: str, epochs: int, clip: float | None) -> dict[str, nn.Module]:
    networks = {"a": network(1).train(), "b": network(2, width=24).train()}
    goal, module = objective(), peers()
    built = {name: module.settings[name].build(peer.parameters(), epochs * BATCHES) for name, peer in networks.items()}
    batches = loader()
    torch.manual_seed(5)
    for _ in range(epochs):
        for batch in batches:
            logits = {name: peer(batch["input"]) for name, peer in networks.items()}
            waiting = {}
            for name, other in (("a", "b"), ("b", "a")):
                waiting[name] = total(goal({"logits": logits[name]}, {"logits": logits[other].detach()}, batch))
                if update == "alternating":
                    step(built[name][0], waiting.pop(name), clip)
                    with torch.no_grad():
                        logits[name] = networks[name](batch["input"])
            for name, loss in waiting.items():
                step(built[name][0], loss, clip)
            for _, schedule in built.values():
                schedule.step()
    return networks


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip: float | None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_training_is_a_hand_written_loop_bit_for_bit(update: str, clip: float | None) -> None:
    expected = by_hand(update, 2, clip)
    module = peers(update=update)
    history = fit(module, loader(), epochs=2, seed=5, gradient_clip=clip, accelerator="cpu")
    assert history.steps == 2 * BATCHES
    for name, peer in expected.items():
        assert equal(module.peers[name].state_dict(), peer.state_dict())


def test_a_step_is_a_batch_that_moves_every_peer() -> None:
    seen: list[float] = []

    class Watching(CrossEntropy):
        def terms(self, student: Any, teacher: Any, batch: Any) -> dict[str, torch.Tensor]:
            seen.append(self.now(Linear(0.0, 1.0)))
            return super().terms(student, teacher, batch)

    module = peers(lambda: Watching() + KL())
    module.build(BATCH)
    trainer = Trainer(
        max_steps=6, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    seen.clear()
    trainer.fit(module, loader())
    assert trainer.global_step == module.steps_done == 6
    assert seen == [progress / 6 for progress in range(6) for _ in "ab"]
    assert all(optimizer.param_groups[0]["lr"] < 1e-6 for optimizer in module.optimizers())
    assert fit(peers(), loader(), steps=6, accelerator="cpu").steps == 6


def test_peers_see_each_other_as_constants_and_in_the_mean() -> None:
    networks = {name: network(seed) for seed, name in enumerate("abc")}
    module = PeerDistiller(networks, {name: KL(temperature=2.0) for name in "abc"})
    signals = module.signals(BATCH)
    terms = module.terms_of("a", signals, BATCH)
    logits = {name: signal["logits"] for name, signal in signals.items()}
    expected = [KL(2.0)({"logits": logits["a"]}, {"logits": logits[o]}, BATCH)["kl"] for o in "bc"]
    torch.testing.assert_close(terms["kl"], torch.stack(expected).mean())
    total(terms).backward()
    assert networks["a"][0].weight.grad is not None
    assert networks["b"][0].weight.grad is None


def test_projectors_join_peers_of_different_widths() -> None:
    def features(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        hidden = model[:3](batch["input"])
        return {"mid": hidden, "logits": model[3:](hidden)}

    def goal() -> Objective:
        return CrossEntropy() + FeatureMSE(student="mid", teacher="mid")

    module = peers(goal, forward=features)
    before = {name: peer.state_dict()["1.running_mean"].clone() for name, peer in module.peers.items()}
    module.build(BATCH)
    for name, mean in before.items():
        assert torch.equal(module.peers[name].state_dict()["1.running_mean"], mean)
    start = [parameter.clone() for parameter in module.objectives.parameters()]
    assert len(start) == 4
    fit(module, loader(), epochs=1, accelerator="cpu")
    for old, new in zip(start, module.objectives.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_logs_name_the_peer(tmp_path: Any) -> None:
    module = peers()
    history = fit(module, loader(), epochs=1, log_every=2, logger=CSVLogger(tmp_path), accelerator="cpu")
    names = {f"{peer}/{term}" for peer in "ab" for term in ("cross_entropy", "kl", "loss")} | {"loss"}
    assert set(history.names()) == names
    line = history.lines[-1]
    assert line["loss"] == pytest.approx(line["a/loss"] + line["b/loss"])
    header, *rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert names <= set(header.split(","))
    assert len(rows) == 2


def test_finish_gives_one_peer() -> None:
    module = peers()
    assert module.training
    assert module.finish("b") is module.peers["b"]
    assert not module.peers["b"].training
    with pytest.raises(UserError, match="peer: given c; allowed: a, b"):
        module.finish("c")


def test_pretrained_peers_in_eval_mode_are_trained() -> None:
    networks = {"a": network(1).eval(), "b": network(2).eval()}
    module = PeerDistiller(networks, {"a": objective(), "b": objective()})
    fit(module, loader(), epochs=1, accelerator="cpu")
    assert int(networks["a"][1].num_batches_tracked) == BATCHES


def test_mistakes_are_named() -> None:
    goals = {"a": CrossEntropy(), "b": CrossEntropy()}
    both = {"a": network(1), "b": network(2)}
    with pytest.raises(UserError, match="two or more networks"):
        PeerDistiller({"a": network(1)}, {"a": CrossEntropy()})
    with pytest.raises(UserError, match=r"objectives: given \['a', 'c'\]; allowed: a, b"):
        PeerDistiller(both, {"a": CrossEntropy(), "c": CrossEntropy()})
    with pytest.raises(UserError, match=r"optimizers: given \['a'\]; allowed: a, b"):
        PeerDistiller(both, goals, optimizers={"a": OptimizerSettings()})
    with pytest.raises(UserError, match="update: given both; allowed: simultaneous, alternating"):
        PeerDistiller(both, goals, update="both")
    with pytest.raises(LimbeckError, match="not written by a PeerDistiller"):
        PeerDistiller(both, goals).on_load_checkpoint({})
