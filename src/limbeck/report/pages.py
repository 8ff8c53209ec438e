"""Jinja templates to one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


@cache
def environment() -> Environment:
    """The templates of this room. All is escaped but for what is marked ``safe``; unknown names are errors."""
    loaded = Environment(
        loader=PackageLoader("limbeck.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loaded.filters["linked"] = linked
    loaded.filters["plain_number"] = plain_number
    return loaded


def write_page(template: str, context: Mapping[str, Any], path: str | Path) -> Path:
    """Render ``template`` into ``path``, making its folder, and return the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = environment().get_template(template).render(context)
    # Empty lines of the templates go; those of code stay.
    text = re.sub(r"(<pre\b.*?</pre>)|\n\s*\n+", lambda found: found[1] or "\n", text, flags=re.DOTALL)
    target.write_text(text, encoding="utf-8")
    return target


def linked(text: str) -> Markup:
    """The text with its web addresses as links."""
    parts = re.split(r"(https?://[^\s<>\"']+[^\s<>\"'.,;)])", text)
    return Markup("").join(
        Markup('<a href="{0}">{0}</a>').format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def plain_number(value: Any) -> str:
    """A number without its noise, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
