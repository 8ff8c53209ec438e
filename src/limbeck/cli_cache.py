"""``limbeck cache``: ask a teacher once and keep its signals, or look after such a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from limbeck.cli_output import print_json
from limbeck.errors import UserError


def cache(
    teacher: str = "",
    data: str = "",
    out: str = "",
    task: str | None = None,
    signals: Literal["cache", "hidden"] = "cache",
    codec: str | None = None,
    columns: dict[str, str] | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    views: int | None = None,
    teacher_precision: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    writers: int = 1,
    part: str | None = None,
    allow_py: bool = False,
    action: str = "write",
    folders: Sequence[str] = (),
) -> None:
    """Ask a teacher about every training sample once and keep its signals on disk; or look after such a cache.

    Args:
        teacher: hf:, timm:, pt2: or py: reference, or server:URL,model=NAME,tokenizer=hf:STUDENT.
        data: folder:, parquet:, csv:, jsonl:, hf:, testbed: or py: reference.
        out: folder of the cache; a cache that was cut goes on. For recode, of the new one.
        task: classification, regression, embedding, features or causal-lm.
        signals: what the task needs, or of causal-lm the hidden states under the teacher's head.
        codec: float32, float16, int8, topk:K, packed:K, mass:P:K or above:P:K (above:0.0008:128 for causal-lm, else
            float16).
        columns: columns of a table, such as text=body.
        max_length: longest text in tokens.
        batch_size: samples that the teacher is asked about at once.
        views: augmented views of every image, for distill with as many.
        teacher_precision: bfloat16 halves the teacher's time where the processor supports it.
        seed: of the split into training and held-out samples; distill has to use the same.
        writers: processes of this machine that write side by side, each with a teacher of its own.
        part: NUMBER/WRITERS, such as 0/4: this writer's share, where others write theirs elsewhere (then merge DIR).
        allow_py: let py: references run code.
        action: write; show or verify DIR; merge DIR (its parts) or merge DIR OTHER ...; recode DIR.
        folders: of the caches, for all but write.
    """
    if action != "write":
        print_json(_look_after(action, list(folders), codec or "float16", out))
        return
    for name, value in (("teacher", teacher), ("data", data), ("out", out)):
        if not value:
            raise UserError(name, "", "limbeck cache --teacher REF --data REF --out DIR, or limbeck cache show DIR")
    from limbeck.job.settings import Settings
    from limbeck.job.signals import write_signals

    settings = Settings(
        teacher, teacher, data, out, task=task, signals=signals, codec=codec, columns=columns or {},
        max_length=max_length, batch_size=batch_size, views=views, teacher_precision=teacher_precision, seed=seed,
        allow_py=allow_py,
    )  # fmt: skip
    print_json(write_signals(settings, writers=writers, part=_part(part)))


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, writers = text.partition("/")
    if not (number.isdigit() and writers.isdigit()) or int(number) >= int(writers):
        raise UserError("part", text, "NUMBER/WRITERS with a number from 0, such as 0/4")
    return int(number), int(writers)


def _look_after(action: str, folders: list[str], codec: str, out: str) -> dict[str, Any]:
    from limbeck.cache import tools

    if not folders or (len(folders) > 1 and action != "merge"):
        raise UserError("folders", folders or "none", f"limbeck cache {action} DIR")
    first = folders[0]
    if action == "verify":
        return tools.verify(first)
    if action == "merge":
        tools.merge(first, folders[1:])
    elif action == "recode":
        if not out:
            raise UserError("out", "", "the folder of the new cache")
        tools.recode(first, out, codec)
        return tools.show(out)
    return tools.show(first)
