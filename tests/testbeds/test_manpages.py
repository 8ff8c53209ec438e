from __future__ import annotations

import pytest
import torch

from limbeck.signals import run_network
from limbeck.testbeds.manpages import FewerWords, ManPages
from limbeck.testbeds.manpages_corpus import SECTIONS, prose, sentences

PAGE = r"""
.\" A comment that has more than six words in it, too.
.TH OPEN 2 2023-02-05 "Linux man-pages 6.03"
.SH NAME
open \- open a file and do many more things with it
.SH DESCRIPTION
The
.BR open ()
system call opens the file specified by
.IR pathname .
If the specified file does not exist, it may
(if
.B O_CREAT
is specified) be created.
.EX
int main(void) { return open the file and also close it again; }
.EE
.PP
Too short here.
The return value is a \fIfile descriptor\fP, a small, nonnegative integer.
.SH SEE ALSO
Everything that stands here would be left out of the corpus.
"""


@pytest.fixture(scope="module")
def testbed() -> ManPages:
    return ManPages(size="smoke")


def test_prose_is_what_a_reader_would_read() -> None:
    assert list(prose(PAGE)) == [
        "The open() system call opens the file specified by pathname.",
        "If the specified file does not exist, it may (if O_CREAT is specified) be created.",
        "The return value is a file descriptor, a small, nonnegative integer.",
    ]


def test_the_corpus_is_large_clean_and_without_repeats() -> None:
    found = sentences()
    assert len(found) > 15_000
    assert len({one.text for one in found}) == len(found)
    assert {one.label for one in found} == set(range(len(SECTIONS)))
    marked = sum("\\" in one.text or one.text.startswith(".") for one in found)
    assert marked < 0.01 * len(found)
    assert all(list(SECTIONS).index(one.page.rsplit(".", 1)[1]) == one.label for one in found[:200])


def test_parts_are_disjoint_and_only_the_training_sentences_are_drawn(testbed: ManPages) -> None:
    one, other = testbed.splits(0), testbed.splits(1)
    assert (len(one.train), len(one.validation), len(one.test)) == (256, 100, 150)
    everything = torch.cat([one.train.id, one.validation.id, one.test.id, testbed._part("teacher_train")])
    assert len(everything.unique()) == 256 + 100 + 150 + 400
    assert torch.equal(one.test.id, other.test.id)
    assert not torch.equal(one.train.id, other.train.id)


def test_the_kept_logits_are_those_of_the_live_teacher(testbed: ManPages) -> None:
    few = testbed.splits().test.subset(range(8))
    (batch,) = few.batches(8)
    live = run_network(testbed.teacher(), batch)["logits"]
    torch.testing.assert_close(live, testbed.teacher_logits(few), atol=1e-4, rtol=1e-4)


def test_a_student_knows_the_frequent_words_alone() -> None:
    class Echo(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return input_ids

    found = FewerWords(Echo(), torch.tensor([5, 9]))(torch.tensor([[9, 7, 5, 99]]), torch.tensor([[1, 1, 1, 0]]))
    assert found.tolist() == [[3, 1, 2, 0]]


@pytest.mark.parametrize("regime", ManPages.regimes)
def test_students_start_by_seed_and_the_gate_passes(regime: str) -> None:
    bed = ManPages(regime, size="smoke")
    first, again, other = (bed.student(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert bed.gate().passed
