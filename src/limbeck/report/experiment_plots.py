"""The pictures of an experiment: its arms, and each of its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from limbeck.experiment.statistics import mean_interval
from limbeck.report.measures import Measure, measure
from limbeck.report.svg import CHARACTER, COLOUR, NARROW, STEPS, Picture, figure, picture
from limbeck.report.tables import format_difference, format_spread

ROLE_MARKER = {"none": "o", "rival": "s", "method": "D", "control": "X", "ablation": "v"}


def arms(key: str, entry: Mapping[str, Any], metric: str) -> Picture:
    """Every arm as a row: seeds as points, the mean and its 95% interval; the teacher as a dashed line."""
    known, scale = measure(metric), measure(metric).scale
    rows = []
    for name, arm in entry["arms"].items():
        values = [record["metrics"].get(metric) for record in arm["outcomes"].values()]
        kept = [scale * value for value in values if value is not None]
        rows.append((name, arm["role"], kept, arm["summary"].get(metric, {})))
    references = {
        name: scale * metrics[metric]
        for name, metrics in entry.get("reference", {}).items()
        if isinstance(metrics, Mapping) and isinstance(metrics.get(metric), (int, float))
    }

    def draw(width: int) -> Figure:
        narrow = width <= NARROW
        pitch = 44 if narrow else 32
        left = 10 if narrow else min(240.0, 16 + CHARACTER * max(len(row[0]) for row in rows))
        drawn = figure(width, 72 + pitch * len(rows), (left, 12 if narrow else 116, 28, 44))
        axes = drawn.axes[0]
        beside: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        for position, (name, role, values, summary) in enumerate(rows):
            _arm_row(axes, position, role, values)
            written = format_spread(metric, summary.get("mean"), summary.get("std"))
            if narrow:
                axes.annotate(name, (0, position), (0, 14), **beside)
            place = (0, 14) if narrow else (116, 0)
            axes.annotate(written, (1, position), place, ha="right", color=COLOUR["muted"], **beside)
        for name, value in references.items():
            axes.axvline(value, color=COLOUR["ink"], linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                name,
                (value, 1),
                (0, 5),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="bottom",
            )
        axes.set_ylim(len(rows) - 0.4, -0.8 if narrow else -0.6)
        axes.set_yticks([] if narrow else range(len(rows)), [] if narrow else [row[0] for row in rows])
        axes.tick_params(axis="y", labelcolor=COLOUR["ink"])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8, steps=STEPS))
        axes.set_xlabel(known.axis)
        return drawn

    means = "; ".join(f"{name} {format_spread(metric, row.get('mean'), row.get('std'))}" for name, _, _, row in rows)
    caption = f"Small points are seeds, large marks their mean, bars the 95% interval of the mean. {_better(known)}"
    return picture(key, draw, f"{known.label} by arm: {means}", caption)


def _arm_row(axes: Axes, position: int, role: str, values: Sequence[float]) -> None:
    colour = COLOUR[role]
    if not values:
        axes.annotate(
            "diverged",
            (0.5, position),
            xycoords=("axes fraction", "data"),
            ha="center",
            va="center",
            color=COLOUR["muted"],
        )
        return
    interval = mean_interval(values)
    if interval is not None:
        axes.plot(
            interval,
            (position, position),
            color=colour,
            linewidth=5,
            alpha=0.28,
            solid_capstyle="round",
            zorder=2,
        )
    axes.plot(
        values,
        [position] * len(values),
        "o",
        markersize=4.2,
        markerfacecolor="none",
        markeredgecolor=colour,
        alpha=0.8,
        zorder=3,
    )
    axes.plot(
        [float(np.mean(values))],
        [position],
        ROLE_MARKER[role],
        markersize=8.5,
        color=colour,
        markeredgecolor=COLOUR["paper"],
        markeredgewidth=1.4,
        zorder=4,
    )


def claim_strip(key: str, claim: Mapping[str, Any]) -> Picture:
    """One comparison: paired differences as points, their mean, its interval, zero and the margin."""
    metric, scale = claim["metric"], measure(claim["metric"]).scale
    differences = [scale * value for value in claim["differences"].values()]
    margin = scale * claim["margin"]
    interval = None if claim["interval"] is None else [scale * end for end in claim["interval"]]
    colour = COLOUR[{"reproduced": "method", "not reproduced": "control"}.get(claim["verdict"], "none")]

    def draw(width: int) -> Figure:
        drawn = figure(width, 80, (12, 12, 22, 26))
        axes = drawn.axes[0]
        points = [*differences, *(interval or ()), margin, 0.0]
        low, high = min(points), max(points)
        pad = 0.08 * (high - low or 1.0)
        axes.axvspan(margin, high + 10 * (high - low + 1), color=COLOUR["method"], alpha=0.07, linewidth=0)
        axes.axvline(0, color=COLOUR["rule"], linewidth=1.2)
        axes.axvline(margin, color=COLOUR["ink"], linewidth=1, linestyle=(0, (3, 2)))
        if interval is not None:
            axes.plot(interval, (0, 0), color=colour, linewidth=7, alpha=0.3, solid_capstyle="round")
        axes.plot(
            differences,
            [0] * len(differences),
            "o",
            markersize=4.2,
            markerfacecolor="none",
            markeredgecolor=colour,
        )
        if differences:
            axes.plot(
                [float(np.mean(differences))],
                [0],
                "D",
                markersize=8,
                color=colour,
                markeredgecolor=COLOUR["paper"],
            )
        place = (margin - low + pad) / (high - low + 2 * pad)
        axes.annotate(
            f"margin {format_difference(metric, claim['margin'])}",
            (margin, 1),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if place < 0.3 else "right" if place > 0.7 else "center",
            color=COLOUR["muted"],
            fontsize=11,
        )
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.tick_params(labelsize=11)
        return drawn

    unit = "points" if scale != 1 else measure(metric).label
    spread = "" if interval is None else f", interval {interval[0]:.3g} to {interval[1]:.3g}"
    mean = f"mean {float(np.mean(differences)):.3g}" if differences else "no pairs"
    return picture(key, draw, f"Paired differences in {unit}: {mean}{spread}, margin {margin:.3g}", widths=(NARROW,))


def _better(known: Measure) -> str:
    return {"higher": "Further right is better.", "lower": "Further left is better."}.get(known.better, "")
