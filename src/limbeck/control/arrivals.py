"""Where a step of a gymnasium vector environment really led, whatever its way of resetting.

In ``SAME_STEP`` mode the observation at the end of an episode is already that of the next one, and the true last one
stands in ``infos["final_obs"]``. In ``NEXT_STEP`` mode (gymnasium's default) the true last one is returned, and the
following step ignores the action and resets. In ``DISABLED`` mode the caller resets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import UserError

MODES = ("SameStep", "NextStep", "Disabled")


def autoreset_mode(environments: Any) -> str:
    """``SameStep``, ``NextStep`` or ``Disabled``; gymnasium's default where an environment does not say."""
    given = environments.metadata.get("autoreset_mode", "NextStep")
    mode = str(getattr(given, "value", given))
    if mode not in MODES:
        raise UserError("autoreset_mode", mode, MODES)
    return mode


def arrivals(
    mode: str, observations: NDArray[Any], infos: Mapping[str, Any], ended: NDArray[Any], reset: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The states arrived at ``[N, ...]``, and which of the N steps were steps at all (bool ``[N]``).

    Args:
        mode: of :func:`autoreset_mode`.
        observations, infos: of the step.
        ended: episodes that ended in it.
        reset: episodes that had ended in the step before, so that in ``NextStep`` mode this one only reset.
    """
    valid = ~reset if mode == "NextStep" else np.ones(len(ended), dtype=bool)
    if mode != "SameStep" or not ended.any():
        return observations, valid
    if "final_obs" not in infos:
        raise UserError("infos", sorted(infos), "final_obs, as gymnasium's SAME_STEP mode promises")
    states = observations.copy()
    for index in np.flatnonzero(ended):
        states[index] = infos["final_obs"][index]
    return states, valid
