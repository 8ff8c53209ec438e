"""Small pictures that an experiment draws while it runs: arrays, maps and scatters as data URIs.

An outcome carries them (``Outcome(pictures={caption: uri})``) and the report shows them by arm. They are images and not
data to draw later because what they show (visits, samples, masks) is too large for the ledger and too different from
system to system.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import UserError

# Dark to bright, readable without colour vision.
_RAMP = np.array([[13, 17, 43], [44, 50, 109], [33, 113, 131], [73, 170, 120], [180, 214, 86], [253, 231, 110]], float)
_BLANK = (226, 222, 212)
_INK = "#44423d"


def image(pixels: NDArray[Any], *, enlarge: int = 1) -> str:
    """An image ``[H, W]`` or ``[H, W, 3]`` of uint8 as a PNG data URI, each pixel ``enlarge`` wide."""
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise UserError("pixels", f"{pixels.dtype} of shape {pixels.shape}", "uint8 of shape [H, W] or [H, W, 3]")
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if picture.mode == "RGB":
        picture = picture.quantize(64)
    picture.save(buffer, "PNG", optimize=True)
    return _uri("png", buffer.getvalue())


def heat_map(values: NDArray[Any], *, logarithmic: bool = False, top: float | None = None, enlarge: int = 4) -> str:
    """A map of ``values`` ``[H, W]``, dark for little and bright for much; what is not finite is left blank.

    Args:
        logarithmic: draw ``log(1 + value)``, for counts that span decades.
        top: the value of the brightest colour, the same for arms that are to be compared; the largest by default.
    """
    known = np.isfinite(values)
    shown = np.where(known, values, 0.0).clip(min=0.0)
    highest = float(shown.max()) if top is None else top
    if logarithmic:
        shown, highest = np.log1p(shown), math.log1p(highest)
    place = (shown / highest if highest > 0 else shown).clip(0, 1) * (len(_RAMP) - 1)
    below = place.astype(int).clip(max=len(_RAMP) - 2)
    share = (place - below)[..., None]
    colours = (_RAMP[below] * (1 - share) + _RAMP[below + 1] * share).round().astype(np.uint8)
    colours[~known] = _BLANK
    return image(colours, enlarge=enlarge)


def scatter(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> str:
    """Points ``name -> (x, y)``, and lines to compare them with, on one pair of axes, as a PNG of some 8 kB."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with rc_context({"font.size": 8, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK}):
        figure = Figure(figsize=(3.0, 2.6), dpi=110, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for (name, (x, y)), colour in zip(series.items(), ("#1d7a6b", "#3a6ea5", "#b0503a", "#8a6fb0") * 4):
            axes.plot(x, y, "o", markersize=2.4, color=colour, label=name, alpha=0.75)
        for name, (x, y) in (lines or {}).items():
            axes.plot(x, y, "--", color=_INK, linewidth=0.9, label=name)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).quantize(16).save(buffer, "PNG", optimize=True)
    return _uri("png", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
