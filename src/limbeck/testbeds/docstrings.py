"""Docstrings: what does a function do, in one sentence, from its name and the words of its code?

Real text with one right-ish answer, read from the Python sources on this machine (see ``code_corpus``).
"""

from __future__ import annotations

import re
from functools import cached_property

from limbeck.data.store import content_hash
from limbeck.models.llama import LlamaSizes
from limbeck.testbeds import code_corpus
from limbeck.testbeds.text_pairs import Pairs, Regime, SplitSizes, TextPairs, Training

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)`'\"])\.(?:\s|$)|:\s|:$|\s-+\s|\(|>>>")
_MARKUP = re.compile(r"[`*\"'{}\\$:<>=|]+")
_CODE = code_corpus.Recipe(test=0, validation=0, train=60000, doc_words=4, code_lines=2, code_characters=400)


class Docstrings(TextPairs):
    """See the module.

    Text is lower-cased, identifiers are split into their words; a docstring is its first sentence.
    """

    name = "docstrings"
    regimes = {
        "plain": Regime(
            "a teacher of 4 layers and a student of 2 narrow ones, both trained on 18,000 functions",
            teacher=LlamaSizes(128, 4, 4),
            student=LlamaSizes(64, 2, 4),
            teacher_recipe=Training(steps=1400, prompt_weight=0.5),
            student_recipe=Training(steps=1200, learning_rate=3e-3),
            bounds={
                "teacher_rouge_l": (0.2, 0.9),
                "rouge_l_lead": (0.03, 1.0),
                "nll_lead": (0.2, 5.0),
                "teacher_copied": (0.1, 0.9),
                "teacher_ended": (0.8, 1.0),
            },
        ),
        "long": Regime(
            "long code, short answers: the plain teacher, taught to read on, an encoder-decoder of 4 + 2 narrow layers",
            teacher=LlamaSizes(128, 4, 4),
            student=SplitSizes(64, 4, 2, 4, 2),
            teacher_recipe=Training(steps=600, learning_rate=1e-3, prompt_weight=0.5),
            student_recipe=Training(steps=1200, learning_rate=3e-3),
            bounds={"teacher_rouge_l": (0.2, 0.9), "nll_lead": (0.1, 5.0), "teacher_ended": (0.8, 1.0)},
            prompt=64, answer=20, begins="plain",
        ),
    }  # fmt: skip

    def data_hashes(self) -> dict[str, str]:
        """Hash of the texts: they come from the installed packages."""
        return {"python sources": self._texts["sha256"]}

    @cached_property
    def pairs(self) -> dict[str, Pairs]:
        """Files are dealt out by the order of the corpus, which follows hashed names."""
        corpus = code_corpus.corpus(_CODE)
        by_file: dict[str, Pairs] = {}
        for function in corpus.train:
            pair = words_of(function)
            if pair is not None:
                by_file.setdefault(function.file, []).append(pair)
        files = sorted(by_file, key=lambda name: content_hash({"file": name}))
        parts: dict[str, Pairs] = {}
        for part, count in (("test", self.plan.test), ("validation", self.plan.validation), ("train", self.plan.train)):
            chosen: Pairs = []
            while files and (count is None or len(chosen) < count):
                # A file's first functions alone are held out, so that no big module rules the test.
                found = by_file[files.pop(0)]
                chosen += found if part == "train" else found[:10]
            parts[part] = chosen[:count]
        return parts


def words_of(function: code_corpus.Function) -> tuple[str, str] | None:
    """The words of a function's code, its name first, and its docstring's first sentence; None if that is too short or
    too long (3 to 16 words)."""
    sentence = _SENTENCE_END.split(function.doc)[0]
    doc = " ".join(_MARKUP.sub(" ", _plain(sentence)).split())
    if not 3 <= len(doc.split()) <= 16:
        return None
    code = re.sub(r"#.*", "", function.code).split("def ", 1)[-1]
    return " ".join(re.findall("[a-z]+", _plain(code))), doc


def _plain(text: str) -> str:
    """Lower case, identifiers split at underscores and humps, punctuation apart."""
    return " ".join(re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9_]", _HUMP.sub(" ", text).lower().replace("_", " ")))
