"""Curves that an experiment draws while it runs, as small SVG data URIs: some 5 kB, sharp at any size."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from limbeck.errors import UserError

Curve = tuple[Sequence[float] | Any, Sequence[float] | Any]
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 12, 38
_LEGEND, _ROW = 9.5, 15
_INK, _RULE = "#44423d", "#dad6cc"
# From early to late, readable without colour vision.
_RAMP = np.array([[68, 57, 131], [49, 104, 142], [33, 145, 140], [53, 183, 121], [160, 200, 50], [240, 180, 40]], float)


def lines(
    series: Mapping[str, Curve],
    *,
    x_label: str,
    y_label: str,
    dashed: Mapping[str, Curve] | None = None,
    points: Mapping[str, Curve] | None = None,
) -> str:
    """Curves over one pair of axes, coloured in their order from early to late.

    Args:
        series: name -> (x, y), drawn as lines.
        x_label, y_label: what the axes are.
        dashed: lines to compare with, in ink.
        points: drawn as crosses, in ink.

    Raises:
        UserError: nothing to draw, x and y of unequal length, values that are not finite.
    """
    groups = [dict(series), dict(dashed or {}), dict(points or {})]
    curves = {name: np.array([x, y], dtype=float) for group in groups for name, (x, y) in _checked(group).items()}
    if not curves:
        raise UserError("series", "nothing", "at least one curve")
    whole = np.concatenate(list(curves.values()), axis=1)
    x_ticks, y_ticks = (_ticks(values) for values in whole)
    low, high = np.array([[min(t[0], v.min()), max(t[-1], v.max())] for t, v in zip((x_ticks, y_ticks), whole)]).T
    rows = _legend_rows(list(curves))
    height = _HEIGHT + _ROW * len(rows)

    def place(curve: Any) -> list[tuple[float, float]]:
        share = (curve - low[:, None]) / np.where(high > low, high - low, 1.0)[:, None]
        x = _LEFT + share[0] * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - share[1] * (_HEIGHT - _TOP - _BOTTOM)
        return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y)]

    drawn = [*_axes(x_ticks, y_ticks, place, x_label, y_label)]
    styles = _styles([list(group) for group in groups])
    for name, curve in curves.items():
        corners = place(curve)
        if name in groups[2]:
            marks = "".join(f"M{a - 3:g} {b - 3:g}l6 6m0-6l-6 6" for a, b in corners)
            drawn.append(f'<path d="{marks}" stroke="{_INK}" stroke-width="1.4"/>')
        else:
            path = " ".join(f"{a:g},{b:g}" for a, b in corners)
            drawn.append(f'<polyline points="{path}" fill="none" {styles[name]}/>')
    for row, names in enumerate(rows):
        drawn += _legend(names, styles, _HEIGHT + _ROW * row + 4)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    )
    text = f'{opening} font-family="sans-serif" font-size="11" fill="{_INK}">{"".join(drawn)}</svg>'
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _checked(group: Mapping[str, Curve]) -> Mapping[str, Curve]:
    for name, (x, y) in group.items():
        if len(x) != len(y) or not len(x):
            raise UserError(f"curve {name}", f"{len(x)} and {len(y)} values", "as many x as y, and at least one")
        if not np.isfinite(np.asarray([x, y], dtype=float)).all():
            raise UserError(f"curve {name}", "NaN or infinite values", "finite ones")
    return group


def _ticks(values: Any) -> Any:
    ticks = MaxNLocator(5, steps=(1, 2, 5, 10)).tick_values(values.min(), values.max())
    return ticks[(ticks >= values.min() - 1e-9) & (ticks <= values.max() + 1e-9)]


def _axes(x_ticks: Any, y_ticks: Any, place: Any, x_label: str, y_label: str) -> list[str]:
    bottom, middle = _HEIGHT - _BOTTOM, (_TOP + _HEIGHT - _BOTTOM) / 2
    drawn = []
    for value, (_, y) in zip(y_ticks, place(np.array([np.zeros_like(y_ticks), y_ticks]))):
        drawn.append(f'<path d="M{_LEFT} {y:g}H{_WIDTH - _RIGHT}" stroke="{_RULE}" stroke-width="0.8"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{value:.3g}</text>')
    for value, (x, _) in zip(x_ticks, place(np.array([x_ticks, np.zeros_like(x_ticks)]))):
        drawn.append(f'<text x="{x:g}" y="{bottom + 15}" text-anchor="middle">{value:.3g}</text>')
    drawn.append(f'<text x="{(_LEFT + _WIDTH) / 2:g}" y="{bottom + 31}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 11 {middle:g})"'
    return [*drawn, f'<text x="11" y="{middle:g}" text-anchor="middle" {turned}>{escape(y_label)}</text>']


def _styles(groups: list[list[str]]) -> dict[str, str]:
    """Line styles by name: colours of the ramp, then dashes."""
    ordered, dashed, points = groups
    styles = {}
    for position, name in enumerate(ordered):
        at = position / max(len(ordered) - 1, 1) * (len(_RAMP) - 1)
        below = min(int(at), len(_RAMP) - 2)
        colour = _RAMP[below] + (at - below) * (_RAMP[below + 1] - _RAMP[below])
        styles[name] = 'stroke="#{:02x}{:02x}{:02x}" stroke-width="1.8"'.format(*(int(part) for part in colour))
    for name, dash in zip(dashed, ("6 3", "1.5 2.5", "8 2 2 2") * len(dashed)):
        styles[name] = f'stroke="{_INK}" stroke-width="1.3" stroke-dasharray="{dash}"'
    return styles | dict.fromkeys(points, "")


def _legend_rows(names: list[str]) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    used = 0.0
    for name in names:
        wide = 26 + _LEGEND * 0.62 * len(name)
        if rows[-1] and used + wide > _WIDTH - 10:
            rows.append([])
            used = 0.0
        rows[-1].append(name)
        used += wide
    return rows


def _legend(names: list[str], styles: Mapping[str, str], y: float) -> list[str]:
    drawn, x = [], 6.0
    for name in names:
        cross = f'<path d="M{x + 5:g} {y - 3:g}l6 6m0-6l-6 6" stroke="{_INK}" stroke-width="1.4"/>'
        drawn.append(f'<path d="M{x:g} {y:g}h16" {styles[name]}/>' if styles[name] else cross)
        drawn.append(f'<text x="{x + 20:g}" y="{y + 3.5:g}" font-size="{_LEGEND}">{escape(name)}</text>')
        x += 26 + _LEGEND * 0.62 * len(name)
    return drawn
