"""From a matplotlib figure to inline SVG in the page's own fonts and colours, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

WIDE, NARROW = 712, 340
CHARACTER = 7.2  # pixels of an average character at the size of the pictures' texts
STEPS = (1, 2, 5, 10)  # distances of ticks
# matplotlib draws with placeholder colours, which become CSS variables, so that one picture serves both
# colour schemes.
_VARIABLES = (
    "ink",
    "muted",
    "rule",
    "paper",
    "none",
    "rival",
    "method",
    "control",
    "ablation",
    "s0",
    "s1",
    "s2",
    "s3",
    "s4",
    "s5",
    "s6",
    "s7",
)
COLOUR = {name: f"#0{index:01x}ab{index:02x}" for index, name in enumerate(_VARIABLES) if index < 16}
COLOUR["s7"] = "#1aab10"
SERIES = tuple(COLOUR[f"s{index}"] for index in range(8))
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limbeck",
    "font.size": 12.5,
    "axes.edgecolor": COLOUR["rule"],
    "axes.labelcolor": COLOUR["muted"],
    "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1.0,
    "grid.color": COLOUR["rule"],
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Picture:
    """One figure, drawn for a desktop and for a phone; the page shows the one that fits.

    ``alt`` says in words what is seen.
    """

    wide: str
    narrow: str
    alt: str
    caption: str = ""


def picture(
    key: str,
    draw: Callable[[int], Figure],
    alt: str,
    caption: str = "",
    *,
    widths: tuple[int, ...] = (WIDE, NARROW),
) -> Picture:
    """Draw at one or two widths. ``key`` is unique on the page: the ids inside begin with it."""
    drawn = []
    for width in widths:
        with rc_context(_SETTINGS):
            drawn.append(inline(draw(width), f"{key}-{width}", alt))
    return Picture(drawn[0], drawn[1] if len(drawn) > 1 else "", alt, caption)


def figure(width: int, height: float, margins: tuple[float, float, float, float]) -> Figure:
    """An empty figure in CSS pixels; ``margins`` are left, right, top, bottom."""
    left, right, top, bottom = margins
    drawn = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    axes = drawn.add_subplot()
    drawn.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    axes.set_facecolor("none")
    return drawn


def inline(drawn: Figure, key: str, alt: str) -> str:
    """The figure as an ``<svg>`` element for the body of a page."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    text = _slim(text)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{key}-", text)
    # The page decides on the typeface; sizes and anchors stay.
    text = re.sub(r"font: (?:\w+ )?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for name, placeholder in COLOUR.items():
        text = text.replace(placeholder, f"var(--{name})")
    width, height = (round(float(size) * 72) for size in drawn.get_size_inches())
    label = escape(alt, quote=True)
    opening = f'<svg class="plot" role="img" aria-label="{label}" width="{width}" height="{height}"'
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', lambda found: f'{opening} viewBox="{found[1]}">', text, count=1
    ).strip()


def _slim(text: str) -> str:
    """The same drawing in less than half the text: no names of groups, hundredths of a pixel, no turns by nothing."""
    text = re.sub(r'<g id="[^"]*"\s*/>| transform="rotate\(-?0 [^"]*\)"', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'\b(d|x|y)="([^"]*)"', lambda found: f'{found[1]}="{_hundredths(found[2])}"', text)
    return re.sub(r">\s+<", "><", text)


def _hundredths(numbers: str) -> str:
    shorter = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), numbers)
    return " ".join(shorter.split())
