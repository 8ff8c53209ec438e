"""The pictures of the reports: each takes plain data and returns a :class:`~limbeck.report.svg.Picture`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from limbeck.report.measures import measure
from limbeck.report.svg import CHARACTER, COLOUR, NARROW, SERIES, STEPS, Picture, figure, picture
from limbeck.report.tables import format_value, is_number

_CURVE = 290  # height of a picture of curves, without its legend


def curves(
    key: str,
    name: str,
    series: Mapping[str, Sequence[Sequence[float | None]]],
    *,
    steps: Mapping[str, Sequence[float]] | None = None,
    x_label: str = "epoch",
    stressed: Collection[str] = (),
) -> Picture:
    """Lines over training, one per arm: the mean over its seeds, with the range of the seeds as a band.

    Args:
        series: arm -> seed -> values.
        steps: arm -> positions on the x axis; counted from 1 where absent.
        stressed: arms whose lines are drawn stronger.
    """
    known, scale = measure(name), measure(name).scale
    lines = {arm: _stack(runs) * scale for arm, runs in series.items() if len(runs) and len(runs[0])}
    palette = {arm: SERIES[index % len(SERIES)] for index, arm in enumerate(lines)}
    dashes = {arm: ("solid", (0, (5, 2)), (0, (1.5, 1.5)))[index // len(SERIES) % 3] for index, arm in enumerate(lines)}

    def draw(width: int) -> Figure:
        narrow = width <= NARROW
        longest = max((len(arm) for arm in lines), default=4)
        legend_columns = max(1, int((width - 20) // (CHARACTER * longest + 40)))
        legend = math.ceil(len(lines) / legend_columns) * 20 + 6 if narrow else 0
        drawn = figure(
            width,
            _CURVE + legend,
            (46, 12 if narrow else min(200.0, 26 + CHARACTER * longest), 30, 48 + legend),
        )
        axes = drawn.axes[0]
        ends = {}
        for arm, values in lines.items():
            positions = np.asarray((steps or {}).get(arm, np.arange(1, values.shape[1] + 1)), dtype=float)
            mean = _ignoring_gaps(np.nanmean, values)
            strength = 2.6 if arm in stressed else 1.6
            axes.plot(
                positions,
                mean,
                color=palette[arm],
                linewidth=strength,
                linestyle=dashes[arm],
                label=arm,
                marker="o" if len(positions) <= 8 else None,
                markersize=3.5,
                zorder=3,
            )
            if values.shape[0] > 1:
                low, high = _ignoring_gaps(np.nanmin, values), _ignoring_gaps(np.nanmax, values)
                axes.fill_between(positions, low, high, color=palette[arm], alpha=0.12, linewidth=0)
            if np.isfinite(mean).any():
                last = np.flatnonzero(np.isfinite(mean))[-1]
                ends[arm] = (float(positions[last]), float(mean[last]))
        axes.grid(axis="y")
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8, integer=True, steps=STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        axes.set_title(known.axis, loc="left", fontsize=12.5, color=COLOUR["muted"], pad=8)
        if narrow:
            axes.legend(
                loc="upper left",
                bbox_to_anchor=(10 / width, (legend + 2) / (_CURVE + legend)),
                bbox_transform=drawn.transFigure,
                ncols=legend_columns,
                borderaxespad=0,
                handlelength=1.4,
                columnspacing=1.2,
                labelspacing=0.35,
                borderpad=0,
            )
        else:
            _label_ends(axes, ends, palette, height=_CURVE - 78)
        return drawn

    finals = "; ".join(f"{arm} ends at {_ignoring_gaps(np.nanmean, values)[-1]:.4g}" for arm, values in lines.items())
    band = " Bands span the seeds." if any(len(values) > 1 for values in lines.values()) else ""
    when = "during training" if x_label in ("epoch", "step") else f"by {x_label}"
    return picture(key, draw, f"{known.label} {when}: {finals}", f"{known.title} {when}.{band}")


def quality_latency(
    key: str, models: Mapping[str, Mapping[str, float]], quality: str, latency: str = "latency_p50_ms"
) -> Picture | None:
    """Each model as a point: how long it takes (log scale) against how good it is. None below two models."""
    known, scale = measure(quality), measure(quality).scale
    found = {
        name: values
        for name, values in models.items()
        if is_number(values.get(latency)) and values[latency] > 0 and is_number(values.get(quality))
    }
    if len(found) < 2:
        return None
    style = {"teacher": ("s", "rival"), "student": ("D", "method")}

    def draw(width: int) -> Figure:
        drawn = figure(width, 300, (50, 18, 30, 50))
        axes = drawn.axes[0]
        times = {name: float(values[latency]) for name, values in found.items()}
        heights = {name: scale * float(values[quality]) for name, values in found.items()}
        bare = next((name for name in found if name.startswith("student ") and "without" in name), None)
        if bare is not None and "student" in found:
            axes.annotate(
                "",
                (times["student"], heights["student"]),
                (times[bare], heights[bare]),
                arrowprops={
                    "arrowstyle": "->",
                    "color": COLOUR["muted"],
                    "shrinkA": 9,
                    "shrinkB": 9,
                    "linewidth": 1,
                },
            )
        low, high = min(times.values()), max(times.values())
        span = max(heights.values()) - min(heights.values()) or abs(max(heights.values())) * 0.1 or 1.0
        floor = min(heights.values()) - 0.3 * span
        to_pixels = 220 / (1.65 * span)
        right = {name: times[name] > math.sqrt(low * high) for name in found}
        # A phone has no room for two labels at one height: slow models have theirs above, fast ones below.
        wanted = {name: 0.0 if width > NARROW else 22.0 if right[name] else -18.0 for name in found}
        for side in (False, True):
            ours = [name for name in found if right[name] == side]
            spots = _spread([(heights[name] - floor) * to_pixels + wanted[name] for name in ours], 36)
            wanted |= {name: spot - (heights[name] - floor) * to_pixels for name, spot in zip(ours, spots)}
        for name in found:
            marker, colour = style.get(name, ("o", "none"))
            axes.plot(
                times[name],
                heights[name],
                marker,
                markersize=11,
                color=COLOUR[colour],
                markeredgecolor=COLOUR["paper"],
                markeredgewidth=1.5,
            )
            axes.annotate(
                f"{name}\n{written[name]}",
                (times[name], heights[name]),
                (-12 if right[name] else 12, wanted[name]),
                textcoords="offset points",
                va="center",
                ha="right" if right[name] else "left",
                linespacing=1.35,
            )
        axes.set_xscale("log")
        reach = max(high / low, 1.6) ** 0.35
        axes.set_xlim(low / reach, high * reach)
        axes.set_ylim(floor, floor + 1.65 * span)
        axes.xaxis.set_major_locator(_FewOnLog())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.spines["left"].set_visible(False)
        axes.grid()
        axes.set_xlabel(f"{measure(latency).label}, ms (log scale; left is faster)")
        axes.set_title(known.axis, loc="left", fontsize=12.5, color=COLOUR["muted"], pad=8)
        return drawn

    written = {
        name: f"{format_value(quality, values[quality])}, {format_value(latency, values[latency])}"
        for name, values in found.items()
    }
    told = "; ".join(f"{name}: {text}" for name, text in written.items())
    return picture(
        key,
        draw,
        f"{known.label} against latency: {told}",
        "Quality against latency: up is better, left is faster.",
    )


def reliability(key: str, diagrams: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """How often a prediction is right (y) for every confidence (x); a calibrated model lies on the diagonal.

    Args:
        diagrams: arm -> ``confidence``, ``accuracy`` and ``share`` (of all samples) per bin.
    """

    def draw(width: int) -> Figure:
        narrow = width <= NARROW
        legend = 20 * len(diagrams) + 8 if narrow else 0
        side = min(width - 62, 320)
        drawn = figure(width, side + 66 + legend, (50, width - side - 50, 12, 50 + legend))
        axes = drawn.axes[0]
        axes.plot((0, 1), (0, 1), color=COLOUR["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for index, (name, bins) in enumerate(diagrams.items()):
            colour = SERIES[index % len(SERIES)]
            axes.plot(bins["confidence"], bins["accuracy"], color=colour, linewidth=1.5, label=name)
            sizes = [8 + 220 * share for share in bins["share"]]
            axes.scatter(
                bins["confidence"],
                bins["accuracy"],
                s=sizes,
                color=colour,
                edgecolors=COLOUR["paper"],
                linewidths=0.8,
                zorder=3,
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.grid()
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("confidence   (y: share that is right)")
        place = (50 / width, (legend - 2) / (side + 66 + legend)) if narrow else ((side + 66) / width, 0.95)
        axes.legend(
            loc="upper left",
            bbox_to_anchor=place,
            bbox_transform=drawn.transFigure,
            borderaxespad=0,
            handlelength=1.4,
        )
        return drawn

    return picture(
        key,
        draw,
        f"Reliability diagram of {', '.join(diagrams)}",
        "Reliability: a calibrated model lies on the diagonal, an overconfident one below. "
        "The area of a point is its share of the samples.",
    )


class _FewOnLog(MaxNLocator):
    """A few round ticks on a logarithmic axis that spans less than two decades."""

    def __init__(self) -> None:
        super().__init__(5)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((max(vmin, 1e-12), max(vmax, 1e-12)))
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in (1, 1.5, 2, 3, 5, 7)]
        return np.array([tick for tick in ticks if low <= tick <= high])


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], palette: Mapping[str, str], height: float) -> None:
    """Names at the ends of the lines, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    wanted = sorted(ends, key=lambda arm: ends[arm][1])
    spots = _spread([(ends[arm][1] - low) / (high - low) * height for arm in wanted], 16)
    excess = max(0.0, (spots[-1] if spots else 0.0) - height)
    spots = [spot - excess for spot in spots]
    for arm, spot in zip(wanted, spots, strict=True):
        axes.annotate(
            arm,
            (1, spot / height),
            (8, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=palette[arm],
        )


def _spread(spots: Sequence[float], distance: float) -> list[float]:
    """The same places, moved apart as little as keeps neighbours ``distance`` from each other."""
    order = sorted(range(len(spots)), key=lambda index: spots[index])
    groups: list[tuple[float, int]] = []  # centre and size of runs of labels that touch
    for index in order:
        centre, size = spots[index], 1
        while groups and groups[-1][0] + groups[-1][1] * distance / 2 > centre - size * distance / 2:
            before, count = groups.pop()
            centre, size = (before * count + centre * size) / (count + size), count + size
        groups.append((centre, size))
    placed = [centre + (rank - (size - 1) / 2) * distance for centre, size in groups for rank in range(size)]
    result = list(spots)
    for index, place in zip(order, placed, strict=True):
        result[index] = place
    return result


def _stack(runs: Sequence[Sequence[float | None]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seeds as rows; shorter ones and missing values end in gaps."""
    longest = max(len(run) for run in runs)
    table = np.full((len(runs), longest), np.nan)
    for row, run in enumerate(runs):
        table[row, : len(run)] = [np.nan if value is None else value for value in run]
    return table


def _ignoring_gaps(reduce: Any, values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    result = np.full(values.shape[1], np.nan)
    seen = np.isfinite(values).any(axis=0)
    result[seen] = reduce(np.where(np.isfinite(values), values, np.nan)[:, seen], axis=0)
    return result
