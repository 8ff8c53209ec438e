"""Reports: self-contained HTML pages and terminal tables made from recorded results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.report.experiment_report import write_experiment_report
    from limbeck.report.job_report import write_job_report
    from limbeck.report.tables import format_value, rich_table

__all__ = ["format_value", "rich_table", "write_experiment_report", "write_job_report"]

_HOME = {
    "write_experiment_report": "experiment_report",
    "write_job_report": "job_report",
    "format_value": "tables",
    "rich_table": "tables",
}


def __getattr__(name: str) -> Any:
    # Late: matplotlib takes half a second that only a report needs.
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
