"""The usual settings of small language models' jobs, and their plans."""

from __future__ import annotations

from typing import Any

from limbeck.job.plan import Plan, make_plan
from limbeck.job.settings import Settings

COMMON: dict[str, Any] = {"task": "causal-lm", "batch_size": 8, "epochs": 1, "max_length": 80, "seed": 1}
PLAIN = {"precision": "32-true", "teacher_precision": "float32"}
#: References of teacher, student and data.
Job = tuple[str, str, str]


def plan_of(given: Job, **options: Any) -> Plan:
    """The plan of a job in float32."""
    return make_plan(Settings(*given, "unused", **{**COMMON, **PLAIN, **options}))
