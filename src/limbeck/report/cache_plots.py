"""The picture of what a teacher cache's codecs cost and keep."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from limbeck.cache.frontier import Point
from limbeck.report.svg import COLOUR, NARROW, Picture, figure, picture


def frontier(
    points: Sequence[Point], *, chosen: str = "", unit: str = "token", key: str = "frontier"
) -> Picture | None:
    """Bytes per row against KL to the uncompressed teacher, one point per codec; None below two codecs.

    The line joins the codecs that no other beats in both.

    Args:
        points: of :meth:`limbeck.cache.Frontier.points`.
        chosen: the codec of this run.
        unit: what a row is.
        key: unique on the page.
    """
    shown = [point for point in points if point.kl > 0 and point.bytes > 0]
    if len(shown) < 2:
        return None
    best = unbeaten(shown)

    def draw(width: int) -> Figure:
        narrow = width <= NARROW
        drawn = figure(width, 340, (56, 18, 30, 50))
        axes = drawn.axes[0]
        axes.plot(
            [one.bytes for one in best], [one.kl for one in best], color=COLOUR["method"], linewidth=1.2, zorder=2
        )
        for point in shown:
            mine = point.codec == chosen
            colour = COLOUR["method"] if mine or point in best else COLOUR["rival"]
            axes.plot(
                point.bytes, point.kl, "D" if mine else "o", markersize=10 if mine else 6, color=colour,
                markeredgecolor=COLOUR["paper"], zorder=3,
            )  # fmt: skip
            # A phone has room for few names.
            if mine or not narrow:
                axes.annotate(
                    point.codec, (point.bytes, point.kl), (7, 4), textcoords="offset points", fontsize=10,
                    color=COLOUR["ink"] if mine or point in best else COLOUR["muted"],
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(x=0.12, y=0.12)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.spines["left"].set_visible(False)
        axes.grid()
        axes.set_xlabel(f"bytes per {unit} (log scale; left is smaller)")
        axes.set_title("KL to the teacher, nats (log scale)", loc="left", fontsize=12.5, color=COLOUR["muted"], pad=8)
        return drawn

    told = "; ".join(f"{point.codec}: {point.bytes:.0f} bytes, KL {point.kl:.3g}" for point in shown)
    line = "The line joins codecs that no other beats in both."
    return picture(
        key, draw, f"Bytes per {unit} against KL to the teacher: {told}", f"What codecs cost and keep. {line}"
    )


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """Points for which no other is at most as large and closer, by bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.bytes, one.kl)):
        if not best or point.kl < best[-1].kl:
            best.append(point)
    return best
