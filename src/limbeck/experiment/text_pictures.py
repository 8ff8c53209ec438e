"""Texts as small SVG data URIs: which words were kept, at a glance."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from limbeck.errors import UserError

_WIDTH, _LINE, _SIZE, _MARGIN = 460, 21, 13, 8
# Of the sans-serif fonts in use; a little too wide rather than too narrow, since words must not touch.
_LETTER, _SPACE = 7.3, 4.5
_KEPT, _DROPPED, _BACK = "#14130f", "#b9b4a7", "#f4dd9b"


def kept_words(texts: Sequence[tuple[Sequence[str], Sequence[bool]]]) -> str:
    """Texts as their words, the kept ones dark on a marked ground, the others pale; a gap between two texts.

    Raises:
        UserError: nothing to draw, or not one mark per word.
    """
    if not any(len(words) for words, _ in texts):
        raise UserError("texts", "no words", "at least one word")
    drawn, y = [], float(_MARGIN + _SIZE)
    for words, keep in texts:
        if len(words) != len(keep):
            raise UserError("keep", f"{len(keep)} marks", f"one per word, {len(words)}")
        x = float(_MARGIN)
        for word, kept in zip(words, keep):
            wide = _LETTER * max(len(word), 1)
            if x + wide > _WIDTH - _MARGIN and x > _MARGIN:
                x, y = float(_MARGIN), y + _LINE
            if kept:
                ground = f"M{x - 1.5:g} {y - _SIZE:g}h{wide + 3:.4g}v17h-{wide + 3:.4g}z"
                drawn.append(f'<path d="{ground}" fill="{_BACK}"/>')
            # Stretched to the width that was reckoned with, whatever font there is.
            style = f'fill="{_KEPT if kept else _DROPPED}" textLength="{wide:.4g}" lengthAdjust="spacingAndGlyphs"'
            drawn.append(f'<text x="{x:g}" y="{y:g}" {style}>{escape(word)}</text>')
            x = round(x + wide + _SPACE, 1)
        y += _LINE * 1.6
    height = y - _LINE * 1.6 + _MARGIN + 4
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.4g}" width="{_WIDTH}"'
    text = f'{opening} height="{height:.4g}" font-family="sans-serif" font-size="{_SIZE}">{"".join(drawn)}</svg>'
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode('ascii')}"
