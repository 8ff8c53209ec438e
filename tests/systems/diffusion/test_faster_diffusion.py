from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Guided
from limbeck.diffusion.grid import Grid
from limbeck.diffusion.noise import DiscreteSchedule
from limbeck.diffusion.samplers import DDIM, DPMSolverPP, Euler, FromDiffusers, Heun, Sampler
from limbeck.diffusion.unet import SmallUNet
from limbeck.errors import UserError
from limbeck.systems.diffusion.faster_diffusion.analysis import feature_change
from limbeck.systems.diffusion.faster_diffusion.keys import LISTS, AdaptiveKeys, KeySchedule
from limbeck.systems.diffusion.faster_diffusion.method import FasterDiffusion

SCHEDULE = DiscreteSchedule.scaled_linear()
STEPS = 10
KEYS = (0, 1, 4, 8)


def noised(network: nn.Module) -> Any:
    """Random weights everywhere: layers that start at zero would hide what reaches the output through them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> SmallUNet:
    return noised(SmallUNet(8, (1, 2, 2)))


def noise(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 16, 16, generator=generator), torch.arange(count)


def ddim(eta: float = 0.0) -> DDIM:
    return DDIM(Grid.spaced(SCHEDULE, STEPS), eta=eta)


def euler_of_diffusers() -> Sampler:
    return FromDiffusers(EulerDiscreteScheduler(beta_schedule="scaled_linear"), STEPS)


def transformer() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=8, patch_size=2
    )


SAMPLERS = {
    "ddim": ddim,
    "ddim-eta": lambda: ddim(1.0),
    "euler": lambda: Euler(Grid.spaced(SCHEDULE, STEPS)),
    "dpm": lambda: DPMSolverPP(Grid.spaced(SCHEDULE, STEPS)),
    "diffusers-euler": euler_of_diffusers,
    "diffusers-dpm": lambda: FromDiffusers(DPMSolverMultistepScheduler(), STEPS),
}


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_a_key_is_the_full_sampler_bit_for_bit(network: SmallUNet, sampler: str, scale: float) -> None:
    start, condition = noise()
    made = SAMPLERS[sampler]()
    fast = FasterDiffusion(network, made, "all", scale=scale, null=network.null)
    full = made.sample(
        Guided(network, scale, network.null), start, condition, generator=torch.Generator().manual_seed(2)
    )
    assert torch.equal(fast.sample(start, condition, generator=torch.Generator().manual_seed(2)), full)


@pytest.mark.parametrize("injection", [0.0, 0.003])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_parallel_is_serial(network: SmallUNet, sampler: str, injection: float) -> None:
    start, condition = noise()
    found = []
    for options in ({"parallel": False}, {}, {"largest_batch": 12}, {"largest_batch": 1}):
        fast = FasterDiffusion(
            network, SAMPLERS[sampler](), KEYS, scale=2.0, null=network.null, injection=injection, **options
        )
        found.append(fast.sample(start, condition, generator=torch.Generator().manual_seed(2)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        found[0], SAMPLERS[sampler]().sample(Guided(network, 2.0, network.null), start, condition)
    )


def test_the_loop_written_out(network: SmallUNet) -> None:
    """Algorithm 2 of the sheet by hand, for one sample without guidance."""
    start, condition = noise(1)
    grid, x = Grid.spaced(SCHEDULE, STEPS), start
    with torch.no_grad():
        for index in range(STEPS):
            t = grid.times[index].expand(1)
            if index in KEYS:
                kept = network.encode(x, t, condition)
            eps = network.decode(kept, t, condition)
            alpha, sigma = grid.alpha[index], grid.sigma[index]
            x = grid.alpha[index + 1] * (x - sigma * eps) / alpha + grid.sigma[index + 1] * eps
    made = FasterDiffusion(network, ddim(), KEYS).sample(start, condition)
    torch.testing.assert_close(made, x.float(), rtol=1e-4, atol=1e-5)


def test_counts(network: SmallUNet) -> None:
    start, condition = noise()
    for options, calls in (({}, 4), ({"parallel": False}, 10), ({"reuse": "output"}, 4)):
        fast = FasterDiffusion(network, ddim(), KEYS, scale=2.0, null=network.null, **options)
        fast.sample(start, condition)
        assert fast.counts.encoder_calls == 4
        assert fast.counts.encoder_rows == 4 * 6
        assert fast.counts.decoder_calls == calls
        assert fast.counts.decoder_rows == (4 * 6 if "reuse" in options else 10 * 6)


class Recorder(SmallUNet):
    """Keeps what the decoder is asked."""

    def decode(self, encoded: Any, t: Tensor, condition: Any = None) -> Tensor:
        self.asked.append((t, condition))
        return super().decode(encoded, t, condition)


def test_one_decoder_call_holds_null_halves_first_with_the_times_of_their_steps() -> None:
    network = noised(Recorder(8, (1, 2)))
    network.asked = []
    FasterDiffusion(network, ddim(), (0, 8), scale=2.0, null=10).sample(*noise(2))
    t, condition = network.asked[1]
    assert t.tolist() == [100, 100, 0, 0, 100, 100, 0, 0]
    assert condition.tolist() == [10, 10, 10, 10, 0, 1, 0, 1]


def test_between_keys_the_sample_does_not_enter_the_network(network: SmallUNet) -> None:
    """Feeding the running x through conv_in while keeping the rest is another method."""
    start, condition = noise(1)
    with torch.no_grad():
        t = torch.tensor([900])
        kept = network.encode(start, t, condition)
        fresh = network.encode(0.5 * start, t, condition)
        mixed = type(kept)(kept.hidden, (fresh.skips[0], *kept.skips[1:]))
        assert not torch.allclose(network.decode(mixed, t, condition), network.decode(kept, t, condition))
    fast = FasterDiffusion(network, ddim(), (0,))
    fast.sample(start, condition)
    assert fast.counts.encoder_rows == 1


def test_forgetting_the_time_embedding_is_the_rival_that_repeats_eps(network: SmallUNet) -> None:
    class Frozen(SmallUNet):
        def decode(self, encoded: Any, t: Tensor, condition: Any = None) -> Tensor:
            return super().decode(encoded, self.first, condition)

        def encode(self, x: Tensor, t: Tensor, condition: Any = None) -> Any:
            self.first = t
            return super().encode(x, t, condition)

    deaf = Frozen(8, (1, 2, 2))
    deaf.load_state_dict(network.state_dict())
    start, condition = noise()
    repeated = FasterDiffusion(network, ddim(), KEYS, reuse="output").sample(start, condition)
    torch.testing.assert_close(FasterDiffusion(deaf, ddim(), KEYS, parallel=False).sample(start, condition), repeated)
    assert not torch.allclose(FasterDiffusion(network, ddim(), KEYS).sample(start, condition), repeated)


def test_injection_by_hand(network: SmallUNet) -> None:
    # With one key and eps repeated, DDIM is linear in x, so what is added can be followed to the end.
    start, condition = noise()
    grid = Grid.spaced(SCHEDULE, STEPS)
    plain = FasterDiffusion(network, ddim(), (0,), reuse="output").sample(start, condition)
    injected = FasterDiffusion(network, ddim(), (0,), reuse="output", injection=0.003).sample(start, condition)
    carried = sum(float(grid.alpha[-1] / grid.alpha[index]) for index in range(STEPS) if grid.times[index] < 500)
    # 0.003 is meant for 50 steps: five times that for ten.
    torch.testing.assert_close(injected - plain, 0.015 * carried * start, rtol=1e-3, atol=1e-4)


def test_two_samplers_may_share_a_network(network: SmallUNet) -> None:
    start, condition = noise()
    alone = FasterDiffusion(network, ddim(), KEYS).sample(start, condition)
    first, second = (FasterDiffusion(network, ddim(), keys) for keys in (KEYS, (0, 5)))
    second.sample(start[:1], condition[:1])
    assert torch.equal(first.sample(start, condition), alone)


def test_lists() -> None:
    assert [len(KeySchedule.of("50ls", 50)), len(KeySchedule.of("50ls_if", 50))] == [9, 10]
    assert KeySchedule.of("pro", 50).keys == (0, 2, 5, 9, 14, 20, 27, 35, 44)
    assert KeySchedule.of(20, 50).keys == (0, 20, 40)
    assert KeySchedule.of("75ls", 75).keys[:12] == (*range(10), 10, 15)
    scaled = KeySchedule.of("50ls", 20)
    assert scaled.keys == (0, 1, 2, 4, 6, 10, 14)
    assert scaled.scaled_from == 50
    assert list(KeySchedule(5, (0, 2)).groups()) == [(0, 1), (2, 3, 4)]
    for name, (steps, keys) in LISTS.items():
        assert KeySchedule.of(name, steps).keys == keys
        for other in (1, 7, 33, 200):
            assert KeySchedule.of(name, other).keys[0] == 0


@pytest.mark.parametrize("wrong", [(1, 2), (0, 10), (0, 3, 3), (0, 5, 2), (), 0, 11, "51ls", None, True])
def test_wrong_keys_are_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="keys"):
        KeySchedule.of(wrong, 10)


def test_what_breaks_the_grouping_is_refused(network: SmallUNet) -> None:
    with pytest.raises(UserError, match="Heun"):
        FasterDiffusion(network, Heun(Grid.spaced(SCHEDULE, STEPS)))
    with pytest.raises(UserError, match="DiTTransformer2DModel"):
        FasterDiffusion(transformer(), ddim())
    with pytest.raises(UserError, match="steps"):
        FasterDiffusion(network, ddim(), KeySchedule.of("50ls", 50))
    with pytest.raises(UserError, match="null"):
        FasterDiffusion(network, ddim(), scale=2.0)
    with pytest.raises(UserError, match="reuse"):
        FasterDiffusion(network, ddim(), reuse="decoder")


def test_adaptive_keys(network: SmallUNet) -> None:
    start, condition = noise()
    guided = Guided(network, 2.0, network.null)
    for count in (1, 4, STEPS):
        found = AdaptiveKeys(count).fit(guided, ddim(), start, condition)
        assert found.keys_.keys[0] == 0
        assert len(found.keys_) >= count
        if count in (1, STEPS):
            assert len(found.keys_) == count
    low, high = (AdaptiveKeys(threshold=value).fit(guided, ddim(), start, condition) for value in (0.0, 1e9))
    assert len(low.keys_) == STEPS
    assert high.keys_.keys == (0,)
    with pytest.raises(UserError, match="threshold"):
        AdaptiveKeys()


def test_feature_change_by_hand(network: SmallUNet) -> None:
    start, condition = noise()
    seen: list[Tensor] = []
    x, sampler = start, ddim()
    with torch.no_grad():
        for index in range(STEPS):
            t = sampler.time(index)
            seen.append(network.encode(x, t, condition).hidden)
            x = sampler.step({}, x, network(x, t, condition), index)
    found = feature_change(network, Guided(network), ddim(), start, condition)
    power = torch.stack(seen).square().mean()
    wanted = [float((b - a).square().mean() / power) for a, b in pairwise(seen)]
    assert found.change["middle"] == pytest.approx(wanted, rel=1e-4)
    assert found.norm["middle"][0] == pytest.approx(float(seen[0].flatten(1).norm(dim=1).mean()), rel=1e-5)
    assert set(found.change) == {"conv_in", "down.0", "down.1", "down.2", "middle", "up.0", "up.1", "up.2"}
    assert len(found.norm["up.0"]) == STEPS
