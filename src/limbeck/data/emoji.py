"""Emoji: small drawings of one thing by two artists, with the name that Unicode gave it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.artefacts import artefact, fetch
from limbeck.data.words import split_words

GOOGLE, TWITTER = ARTEFACTS = ("emoji-datasource-google", "emoji-datasource-twitter")
PIXELS = 32


@dataclass(frozen=True)
class Emoji:
    """Drawings of the concepts that both artists drew, in the order of their code points.

    Attributes:
        names: what each shows: the Unicode name, such as "crossed swords".
        kinds: Unicode's subcategory, such as "tool". category: its broad category.
        google, twitter: uint8 ``[N, 3, 32, 32]``, on white.
    """

    names: list[str]
    kinds: list[str]
    categories: list[str]
    google: Tensor
    twitter: Tensor


def load_emoji() -> Emoji:
    """All of them, without the variants of skin tone, which repeat a drawing and its name."""
    from PIL import Image

    sheets = {GOOGLE: "32.png", TWITTER: "img/twitter/sheets/32.png"}
    rows = json.loads((fetch(TWITTER) / "emoji.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row["has_img_google"] and row["has_img_twitter"]]
    rows.sort(key=lambda row: row["unified"])
    drawn = {}
    for name, path in sheets.items():
        picture = Image.open(fetch(name) / path).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        sheet = torch.frombuffer(
            bytearray(Image.alpha_composite(white, picture).convert("RGB").tobytes()), dtype=torch.uint8
        )
        sheet = sheet.view(picture.height, picture.width, 3)
        # Every drawing has a border of one pixel on the sheet.
        step = PIXELS + 2
        cells = [sheet[row["sheet_y"] * step + 1 :, row["sheet_x"] * step + 1 :][:PIXELS, :PIXELS] for row in rows]
        drawn[name] = torch.stack(cells).permute(0, 3, 1, 2).contiguous()
    return Emoji(
        [" ".join(split_words(row["name"])) for row in rows],
        [" ".join(split_words(row["subcategory"])) for row in rows],
        [row["category"] for row in rows],
        drawn[GOOGLE],
        drawn[TWITTER],
    )


def data_hashes() -> dict[str, str]:
    """Hashes of the two packages."""
    return {name: artefact(name).sha256 for name in ARTEFACTS}
