"""Glosses: what kind of thing is it, from what a dictionary says of it? Short text in, short answer out.

WordNet's nouns: the prompt is what a word means, without the word; the answer is the field that it belongs to (animals,
acts, places ...) and the next two more general words, such as ``artifact: vessel: container``. The package's own files
are read, so the same pairs are there on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from limbeck.data.artefacts import artefact
from limbeck.data.store import content_hash
from limbeck.models.llama import LlamaSizes
from limbeck.testbeds.text_pairs import Pairs, Regime, SplitSizes, TextPairs, Training
from limbeck.testbeds.wordnet import ARTEFACT, Sense, senses

#: The lexicographers' files of nouns that WordNet numbers 3 to 28.
FIELDS = (
    "top", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip


class Glosses(TextPairs):
    """See the module. A gloss is lower-cased, of 3 to 20 words; no gloss is there twice."""

    name = "glosses"
    regimes = {
        "plain": Regime(
            "a causal teacher of 4 layers, an encoder-decoder of 4 and 2 narrow ones",
            teacher=LlamaSizes(128, 4, 4),
            student=SplitSizes(64, 4, 2, 4, 2),
            teacher_recipe=Training(steps=1200, prompt_weight=0.5),
            student_recipe=Training(steps=1200, learning_rate=3e-3),
            bounds={"teacher_rouge_l": (0.2, 0.95), "nll_lead": (0.05, 5.0), "teacher_ended": (0.8, 1.0)},
            prompt=28, train=24000, test=800,
        ),
    }  # fmt: skip

    def data_hashes(self) -> dict[str, str]:
        """Of WordNet's files."""
        return {ARTEFACT: artefact(ARTEFACT).sha256}

    @cached_property
    def pairs(self) -> dict[str, Pairs]:
        """Dealt out in the order of hashed glosses."""
        known = senses()
        found: dict[str, str] = {}
        for sense in known.values():
            made = pair_of(sense, known)
            if made is not None:
                found.setdefault(*made)
        rows = sorted(found.items(), key=lambda pair: content_hash({"gloss": pair[0]}))
        parts: dict[str, Pairs] = {}
        for part, count in (("test", self.plan.test), ("validation", self.plan.validation), ("train", self.plan.train)):
            parts[part], rows = rows[:count], rows[len(rows) if count is None else count :]
        return parts


def pair_of(sense: Sense, known: Mapping[str, Sense]) -> tuple[str, str] | None:
    """A noun's gloss, and its field with the two next more general words; None without them or of another length."""
    words = re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", sense.gloss.lower())
    if not sense.key.startswith("noun.") or not sense.parents or not 3 <= len(words) <= 20:
        return None
    parent = known[sense.parents[0]]
    above = [parent, *(known[key] for key in parent.parents[:1])]
    if len(above) < 2:
        return None
    return " ".join(words), ": ".join([FIELDS[sense.field - 3], *(one.words[0].lower() for one in above)])
