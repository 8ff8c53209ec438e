"""How values are written, shared by HTML pages and terminal tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from limbeck.report.measures import AGREEMENT, QUALITY, SIZE, SPEED, grouped, measure

__all__ = [
    "against_teacher",
    "best_models",
    "format_difference",
    "format_duration",
    "format_interval",
    "format_range",
    "format_spread",
    "format_value",
    "is_number",
    "measure",
    "result_metrics",
    "rich_table",
]

NOTHING = "–"
_DIRECTIONS = {"count": ("fewer", "more"), "flops": ("fewer", "more"), "bytes": ("smaller", "larger")}


def format_value(metric: str, value: float | None) -> str:
    """``value`` with its unit, rounded to what a reader can use: ``84.2%``, ``22.7 M``, ``3.42 ms``."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "diverged"
    return _WRITERS[measure(metric).kind](float(value))


def format_spread(metric: str, mean: float | None, std: float | None) -> str:
    """Mean and standard deviation: ``84.2 ± 0.3%``."""
    if mean is None or std is None or not math.isfinite(mean):
        return format_value(metric, mean)
    kind = measure(metric).kind
    if kind == "percent":
        return f"{100 * mean:.1f} ± {_spread(100 * std, 1)}%"
    if kind in ("number", "nats"):
        places = _places(mean)
        return f"{mean:.{places}f} ± {_spread(std, places)}"
    return f"{format_value(metric, mean)} ± {format_value(metric, std)}"


def format_difference(metric: str, value: float | None) -> str:
    """A signed difference: ``+1.9 points`` for shares, else in the metric's unit."""
    return _difference(metric, value, value)


def _difference(metric: str, value: float | None, largest: float | None) -> str:
    """``largest`` sets the decimals, so that numbers that are read together have the same."""
    if value is None or largest is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if measure(metric).kind == "percent":
        places = 1 if abs(largest) >= 0.01 else 2 if abs(largest) >= 0.0005 else 3
        return f"{_signed(100 * value, places)} points"
    if measure(metric).kind in ("number", "nats"):
        return _signed(value, _places(largest))
    return ("+" if value >= 0 else "−") + format_value(metric, abs(value))


def format_interval(metric: str, interval: Iterable[float] | None) -> str:
    """Both ends, signed: ``+1.2 to +2.6 points``."""
    if interval is None:
        return NOTHING
    ends = list(interval)
    low, high = (_difference(metric, end, max(ends, key=abs)) for end in ends)
    return f"{low.removesuffix(' points')} to {high}"


def format_range(metric: str, interval: Iterable[float]) -> str:
    """Both ends of a level, not of a difference: ``83.9 to 84.5%``."""
    low, high = interval
    kind = measure(metric).kind
    if kind == "percent":
        return f"{_sign(f'{100 * low:.1f}')} to {format_value(metric, high)}"
    if kind in ("number", "nats"):
        places = _places(max(low, high, key=abs))
        return _sign(f"{low:.{places}f} to {high:.{places}f}")
    return f"{format_value(metric, low)} to {format_value(metric, high)}"


def format_duration(seconds: float | None) -> str:
    """``48 s``, ``12 min 5 s``, ``2 h 10 min``."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def against_teacher(metric: str, value: float | None, teacher: float | None) -> str:
    """``97.1% of the teacher``, ``2.6× smaller``, ``3.1× faster``, or nothing where a ratio means nothing."""
    known = measure(metric)
    if (
        value is None
        or teacher is None
        or not (math.isfinite(value) and math.isfinite(teacher))
        or value <= 0
        or teacher <= 0
    ):
        return ""
    if known.group in (SIZE, SPEED) and known.better:
        gain = teacher / value if known.better == "lower" else value / teacher
        better, worse = _DIRECTIONS.get(known.kind, ("faster", "slower"))
        if f"{gain:.2f}" == "1.00":
            return "the same"
        return f"{_times(gain)} {better}" if gain > 1 else f"{_times(1 / gain)} {worse}"
    if known.group == QUALITY and known.better == "higher":
        return f"{100 * value / teacher:.1f}% of the teacher"
    return ""


def best_models(metric: str, models: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of the models with the best value, when there are two or more and they differ as written.

    How far a teacher agrees with itself is no achievement, so agreement is compared among the others.
    """
    known = measure(metric)
    rivals = {
        name: float(values[metric])
        for name, values in models.items()
        if is_number(values.get(metric)) and not (known.group == AGREEMENT and name == "teacher")
    }
    if not known.better or len({format_value(metric, value) for value in rivals.values()}) < 2:
        return set()
    best = (max if known.better == "higher" else min)(rivals.values())
    return {name for name, value in rivals.items() if format_value(metric, value) == format_value(metric, best)}


def is_number(value: Any) -> bool:
    """A finite number that is no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def result_metrics(result: Mapping[str, Any]) -> list[str]:
    """Every numeric measure of the models of a result."""
    return list(
        dict.fromkeys(
            name for values in result["models"].values() for name, value in values.items() if is_number(value)
        )
    )


def rich_table(result: Mapping[str, Any]) -> Table:
    """The table that ``limbeck distill`` ends with: one column per model, the best value of a row marked."""
    models: Mapping[str, Mapping[str, Any]] = result["models"]
    table = Table(title=str(result.get("title", "")), title_justify="left", title_style="bold", header_style="bold")
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
    versus = "student" if "teacher" in models and "student" in models else ""
    if versus:
        table.add_column("student against teacher", justify="left", style="dim")
    for _, measures in grouped(result_metrics(result), str(result.get("primary_metric", ""))):
        for one in measures:
            best = best_models(one.name, models)
            cells = [Text(f"{one.label} {one.arrow}".strip())]
            for name, values in models.items():
                value = values.get(one.name)
                text = format_value(one.name, value if isinstance(value, (int, float)) else None)
                cells.append(Text(text, style="bold green" if name in best else ""))
            if versus:
                cells.append(
                    Text(against_teacher(one.name, models["student"].get(one.name), models["teacher"].get(one.name)))
                )
            table.add_row(*cells)
        table.add_section()
    return table


def _places(value: float) -> int:
    """Decimals that leave about three significant digits, and never more than five."""
    size = abs(value)
    return 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 or size == 0 else 4 if size >= 0.01 else 5


def _number(value: float) -> str:
    size = abs(value)
    if value == int(value) and 10 <= size < 1e6:
        return _sign(f"{int(value):,}")
    if size >= 1e6 or 0 < size < 1e-4:
        return _sign(f"{value:.3g}")
    return _sign(f"{value:.{_places(value)}f}")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    size, step = abs(value), 0
    while size >= 999.5 and step < len(units) - 1:
        size, step = size / 1000, step + 1
    digits = f"{size:.0f}" if size >= 99.95 or (step == 0 and size == int(size)) else f"{size:#.3g}"
    return f"{'−' if value < 0 else ''}{digits} {units[step]}".strip()


def _rate(value: float) -> str:
    return f"{value:,.0f} /s" if value >= 100 else f"{value:#.3g} /s"


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:#.3g} ms"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 20 else f"{ratio:.1f}×" if ratio >= 1.95 else f"{ratio:.2f}×"


def _spread(value: float, places: int) -> str:
    """A standard deviation is never rounded to nothing."""
    written = f"{value:.{places}f}"
    return f"{value:.1g}" if value > 0 and float(written) == 0 else written


def _signed(value: float, places: int) -> str:
    written = f"{abs(value):.{places}f}"
    return ("−" if value < 0 and float(written) else "+") + written


def _sign(written: str) -> str:
    return written.replace("-", "−") if "e" not in written else written


_WRITERS = {
    "percent": lambda value: f"{_sign(f'{100 * value:.1f}')}%",
    "number": _number,
    "nats": _number,
    "count": lambda value: f"{value:,.0f}" if abs(value) < 10_000 else _scaled(value, ("", "k", "M", "G", "T")),
    "bytes": lambda value: _scaled(value, ("B", "kB", "MB", "GB", "TB")),
    "flops": lambda value: _scaled(value, ("", "k", "M", "G", "T")),
    "milliseconds": _milliseconds,
    "seconds": lambda value: format_duration(value),
    "rate": _rate,
    "ratio": lambda value: _times(value),
}
