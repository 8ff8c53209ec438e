from __future__ import annotations

import torch

from limbeck.experiment.base import Exact, load_experiment
from limbeck.experiment.pictures import image
from limbeck.systems.diffusion.faster_diffusion.experiment import Fifty
from limbeck.systems.diffusion.faster_diffusion.identities import parallel_against_serial

MODULE = "limbeck.systems.diffusion.faster_diffusion.experiment"


def test_the_full_arm_is_its_own_reference() -> None:
    found = load_experiment(f"{MODULE}:fifty", "smoke").run("full", 0)
    assert found.metrics["psnr_to_full"] == 100
    assert found.metrics["fid_ratio"] == 1
    assert found.metrics["encoder_calls"] == 50
    assert found.metrics["flops_saved"] == 0
    assert found.notes["keys"] == list(range(50))
    [picture] = found.pictures.values()
    assert len(picture) < 6000, "a dozen of them must fit into an entry"


def test_savings_follow_from_the_counts() -> None:
    experiment = load_experiment(f"{MODULE}:fifty", "smoke")
    assert isinstance(experiment, Fifty)
    cost = experiment.cost_per_row
    share = cost["encode"] / (cost["encode"] + cost["decode"])
    by_list, even, repeated = (experiment.run(arm, 0).metrics for arm in ("50ls", "uniform-6", "reuse-output"))
    assert abs(by_list["flops_saved"] - share * 41 / 50) < 1e-6
    assert even["flops_saved"] == by_list["flops_saved"], "the control must cost the same"
    assert abs(repeated["flops_saved"] - 41 / 50) < 1e-6
    steps = experiment.equal_steps("50ls")
    assert steps - 1 < 50 * (1 - by_list["flops_saved"]) <= steps, "the rival is rounded in its favour"
    assert experiment.run("50ls", 0).cost["speedup"] > 0


def test_adaptive_keys_do_not_see_the_recorded_noises() -> None:
    experiment = load_experiment(f"{MODULE}:fifty", "smoke")
    notes = [experiment.run("adaptive", 0).notes for _ in range(2)]
    assert notes[0] == notes[1]
    assert notes[0]["keys"][0] == 0


def test_exact_claims_can_fail() -> None:
    exact = [claim for claim in Fifty.claims if isinstance(claim, Exact)]
    assert len(exact) == 3
    assert 0 < parallel_against_serial() < 1e-5, "rounding, not the same code twice"


def test_pictures_are_data_uris() -> None:
    assert image(torch.zeros(4, 4, dtype=torch.uint8).numpy()).startswith("data:image/png;base64,")
