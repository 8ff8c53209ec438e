"""Write docs/losses.md: one row per public loss, read from its docstring and signature.

python tools/loss_table.py            write the page
python tools/loss_table.py --check    fail if the page is not what the code says
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck import losses
from limbeck.errors import LimbeckError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "losses.md"
FIELDS = ("Formula", "Source", "Batch-wise")
CONTRACT = ("mask", "weight", "reduction", "denominator")
HEAD = """# Losses

Written by `tools/loss_table.py` from the docstrings of `limbeck.losses`; do not edit.

Pure functions of tensors that need nothing but torch. Every one takes `mask`, `weight`, `reduction` (`none`,
`sum`, `mean`) and `denominator`. A loss that is batch-wise compares rows with each other: gather the rows
first, and do not split it into micro-batches; all others add up exactly over any split that shares a
`denominator`.
"""


@dataclass(frozen=True)
class Row:
    """What the page says about one loss."""

    name: str
    summary: str
    formula: str
    source: str
    batchwise: str
    reduction: str


def is_loss(thing: object) -> bool:
    """Functions with the options of the loss contract: no transforms, helpers, nor the reduction itself."""
    if not inspect.isfunction(thing) or thing is losses.reduce_rows:
        return False
    return set(CONTRACT) <= set(inspect.signature(thing).parameters)


def read(loss: Callable[..., Any]) -> Row:
    """Row of one loss; an error names the line that its docstring lacks."""
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(loss) or "")
    fields: dict[str, str] = {}
    for paragraph in paragraphs:
        for part in re.split(rf"^(?=(?:{'|'.join(FIELDS)}): )", paragraph, flags=re.MULTILINE):
            key, _, value = part.partition(": ")
            if key in FIELDS:
                fields[key] = " ".join(value.split())
    missing = [key for key in FIELDS if not fields.get(key)]
    if missing:
        raise LimbeckError(f"{loss.__module__}.{loss.__name__}: its docstring has no line '{missing[0]}: ...'")
    if not fields["Batch-wise"].startswith(("yes", "no")):
        raise LimbeckError(f"{loss.__module__}.{loss.__name__}: 'Batch-wise:' must begin with yes or no")
    default = inspect.signature(loss).parameters["reduction"].default
    summary = " ".join(paragraphs[0].split()).rstrip(".")
    return Row(loss.__name__, summary, fields["Formula"], fields["Source"], fields["Batch-wise"], str(default))


def public_losses(package: ModuleType = losses) -> dict[str, list[Callable[..., Any]]]:
    """The public losses by the module that holds them, both by name."""
    found: dict[str, list[Callable[..., Any]]] = {}
    for name in package.__all__:
        thing = getattr(package, name)
        if is_loss(thing):
            found.setdefault(thing.__module__, []).append(thing)
    return dict(sorted(found.items()))


def page(package: ModuleType = losses) -> str:
    """The whole page."""
    lines = [HEAD]
    for module, functions in public_losses(package).items():
        title = module.rsplit(".", 1)[-1]
        opening = (inspect.getdoc(sys.modules[module]) or "").split("\n\n")[0]
        lines += [f"## {title}\n", " ".join(opening.split()) + "\n"]
        lines += [
            "| loss | what it does | formula | batch-wise | reduction | source |",
            "|---|---|---|---|---|---|",
        ]
        for row in map(read, functions):
            cells = (
                f"`{row.name}`",
                row.summary,
                row.formula,
                row.batchwise,
                f"`{row.reduction}`",
                row.source,
            )
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; the exit status says whether it is up to date."""
    parser = argparse.ArgumentParser(description="Write docs/losses.md from the docstrings of limbeck.losses.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page lies")
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        if options.page.exists() and options.page.read_text(encoding="utf-8") == text:
            return 0
        print(f"{options.page.name} is stale: run python tools/loss_table.py", file=sys.stderr)
        return 1
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(text, encoding="utf-8")
    return 0


def _cell(text: str) -> str:
    """Markdown of a docstring's text: single backquotes, names without roles, bars that end no cell."""
    text = re.sub(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
