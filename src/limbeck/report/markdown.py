"""A system's page, written in Markdown, as HTML of the site: its own headings, tables and boxes of code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_OUTSIDE = re.compile(r"https?://|mailto:", re.IGNORECASE)


@dataclass(frozen=True)
class Article:
    """The title (its first heading), the body as HTML, and the headings right under the title as (id, text)."""

    title: str
    body: Markup
    headings: tuple[tuple[str, str], ...]


def article(
    text: str,
    *,
    level: int = 3,
    prefix: str = "",
    link: Callable[[str], str] = lambda address: "",
    picture: Callable[[str], str] = lambda address: "",
) -> Article:
    """Render Markdown with tables; HTML in it is shown as text.

    Args:
        level: of the headings that are written ``##``; deeper ones follow.
        prefix: goes before the ids of headings.
        link: a relative address -> where it leads on the site, or nothing, which leaves the words without a link.
        picture: the address of a picture -> its data URI, or nothing, which leaves its words. Pages fetch nothing.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = markdown.parse(text)
    title = ""
    if [token.type for token in tokens[:3]] == ["heading_open", "inline", "heading_close"] and tokens[0].tag == "h1":
        title, tokens = _words(tokens[1]), tokens[3:]
    headings, ids = [], dict[str, str]()
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            depth, words = int(token.tag[1]), _words(tokens[position + 1])
            name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "section"
            name = name if f"#{name}" not in ids else f"{name}-{len(ids)}"
            ids[f"#{name}"] = f"#{prefix}{name}"
            token.attrSet("id", f"{prefix}{name}")
            token.tag = tokens[position + 2].tag = f"h{min(6, max(2, depth) - 2 + level)}"
            headings += [(f"{prefix}{name}", words)] if depth == 2 else []
    for token in tokens:
        if token.children:
            token.children = _resolved(token.children, lambda address: ids.get(address) or link(address), picture)
    for name, rule in _RULES.items():
        markdown.add_render_rule(name, rule)
    return Article(title, Markup(markdown.renderer.render(tokens, markdown.options, {})), tuple(headings))


def _words(inline: Token) -> str:
    """What is read of it: no marks, no addresses."""
    parts = (
        " " if child.type in ("softbreak", "hardbreak") else _words(child) if child.children else child.content
        for child in inline.children or ()
    )
    return "".join(parts)


def _resolved(children: Sequence[Token], link: Callable[[str], str], picture: Callable[[str], str]) -> list[Token]:
    """The same words with links that lead somewhere and pictures that are in the page."""
    kept, open_links = [], []
    for token in children:
        if token.type == "link_open":
            address = str(token.attrGet("href") or "")
            found = address if _OUTSIDE.match(address) else link(address)
            open_links.append(bool(found))
            token.attrSet("href", found)
            if not found:
                continue
        elif token.type == "link_close":
            if not open_links.pop():
                continue
        elif token.type == "image":
            source = picture(str(token.attrGet("src") or ""))
            token.attrSet("src", source)
            if not source:
                words = Token("text", "", 0, content=_words(token))
                kept.append(words)
                continue
        kept.append(token)
    return kept


def _code(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Code as on the other pages; what is marked as a language gets the button that copies it."""
    token = tokens[index]
    kind = "command code" if token.info.strip() else "code"
    return f'<div class="{kind}"><pre tabindex="0">{escape(token.content.rstrip(), quote=False)}</pre></div>\n'


def _table_open(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="scroll"><table class="prose">\n'


def _table_close(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


_RULES = {"fence": _code, "code_block": _code, "table_open": _table_open, "table_close": _table_close}
