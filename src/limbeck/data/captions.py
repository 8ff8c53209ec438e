"""Captions of the sprite world, true ones and ones with noise that is known.

    a red coat left of a striped blue seven

A caption names the objects of a scene (``objects`` of them at most) and how
each lies to the one before it. Noise stands for that of captions from the web: a word is missing, a word is wrong, or
the caption is of another picture; what was done to each is kept on record.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import torch

from limbeck.data.sprites import COLOURS, KINDS, TEXTURES, Scenes
from limbeck.data.views import integers, uniform, view_seeds
from limbeck.errors import UserError

RELATIONS = ("left of", "right of", "above", "below")
Noise = Literal["none", "dropped", "swapped", "other scene"]
_DROPPED: Noise = "dropped"
_SWAPPED: Noise = "swapped"


@dataclass(frozen=True)
class Thing:
    """One object of a caption; ``None`` is not said."""

    kind: int | None
    colour: int | None = None
    texture: int | None = None

    def __str__(self) -> str:
        texture = TEXTURES[self.texture] if self.texture else None  # A plain one is not called so.
        colour = COLOURS[self.colour] if self.colour is not None else None
        kind = KINDS[self.kind] if self.kind is not None else "thing"
        return " ".join(["a", *(word for word in (texture, colour) if word), kind])


@dataclass(frozen=True)
class Caption:
    """The objects that are named, and how each but the first lies to the one before: an index of RELATIONS."""

    things: tuple[Thing, ...]
    relations: tuple[int, ...] = ()
    noise: Noise = "none"

    def __str__(self) -> str:
        # "a coat left of a bag": the first thing lies left of the second.
        words = [str(self.things[0])]
        for relation, thing in zip(self.relations, self.things[1:], strict=True):
            words += [RELATIONS[relation], str(thing)]
        return " ".join(words)


def captions(scenes: Scenes, *, objects: int = 2, textures: bool = False) -> list[Caption]:
    """What is true of each scene, in the order of the scenes.

    Args:
        objects: name at most so many.
        textures: say the texture too.
    """
    if objects < 1:
        raise UserError("objects", objects, "1 or more")
    columns = (scenes.kind, scenes.colour, scenes.texture, scenes.centre)
    found = []
    for kinds, colours, kinds_of_texture, centres in zip(*(column.tolist() for column in columns), strict=True):
        named = [number for number, kind in enumerate(kinds) if kind >= 0][:objects]
        things = tuple(
            Thing(kinds[number], colours[number], kinds_of_texture[number] if textures else None) for number in named
        )
        pairs = itertools.pairwise(named)
        found.append(Caption(things, tuple(_relation(centres[one], centres[other]) for one, other in pairs)))
    return found


def with_noise(true: list[Caption], ids: torch.Tensor, share: float, *, seed: int = 0) -> list[Caption]:
    """The captions, ``share`` of them spoilt: a word dropped, a word swapped, or another scene's caption.

    The three kinds of noise are equally likely; a word is the colour or the kind of one of the objects. Which captions
    are spoilt is a function of (seed, id); another scene's caption is one of ``true``.
    """
    if not 0 <= share <= 1:
        raise UserError("share", share, "0 to 1")
    view = view_seeds(seed, 0, ids)
    spoilt = (uniform(view, 0) < share).tolist()
    draws = torch.stack([uniform(view, draw) for draw in range(1, 5)], 1).tolist()
    others = integers(view, 5, max(1, len(true) - 1)).tolist()
    result = []
    for number, caption in enumerate(true):
        if not spoilt[number]:
            result.append(caption)
            continue
        what, which, word, new = draws[number]
        if what < 1 / 3 and len(true) > 1:
            other = others[number] + (others[number] >= number)
            result.append(replace(true[other], noise="other scene"))
            continue
        place = int(which * len(caption.things))
        name, count = ("colour", len(COLOURS)) if word < 0.5 else ("kind", len(KINDS))
        thing = caption.things[place]
        if what < 2 / 3:
            changed, noise = replace(thing, **{name: None}), _DROPPED
        else:
            # Never the old word: the draw is among the others.
            value = int(new * (count - 1))
            changed, noise = replace(thing, **{name: value + (value >= getattr(thing, name))}), _SWAPPED
        things = (*caption.things[:place], changed, *caption.things[place + 1 :])
        result.append(replace(caption, things=things, noise=noise))
    return result


def vocabulary() -> list[str]:
    """Every word that a caption may hold."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    return sorted({"a", "thing", *KINDS, *COLOURS, *TEXTURES[1:], *relations})


def _relation(one: list[float], other: list[float]) -> int:
    """Where ``one`` lies, seen from ``other``, along the axis on which they lie farther apart."""
    x, y = one[0] - other[0], one[1] - other[1]
    if abs(x) >= abs(y):
        return 0 if x < 0 else 1
    return 2 if y < 0 else 3
