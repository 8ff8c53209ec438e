"""What must hold before a language model is distilled: one vocabulary, and text of whom an estimator thinks it is."""

from __future__ import annotations

from torch import nn

from limbeck.errors import UserError
from limbeck.language.writers import DataText, OnPolicy, StoredText, Writer
from limbeck.objectives import Divergence, Objective


def check_tokenizers(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse two transformers models of different vocabularies: what one calls token 17 is another word to the other.

    Equal sizes do not prove equal tokenizers; where these are at hand compare
    :func:`limbeck.cache.fingerprint_tokenizer` of both.
    """
    sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(
            "teacher's vocabulary", f"{sizes[1]} tokens", f"the student's, {sizes[0]}", "both must use one tokenizer"
        )


def check_writer(objective: Objective, writer: Writer) -> None:
    """Refuse a sampled estimator (``k1``, ``k3``) on text that its sampler did not write.

    Whether the data, or stored texts, are the teacher's own samples is for the caller to know.
    """
    for part in objective.modules():
        if not isinstance(part, Divergence) or part.text_of is None:
            continue
        key = f"{part.name} estimator {part.estimator}"
        if part.text_of == "teacher":
            if not isinstance(writer, (DataText, StoredText)):
                raise UserError(key, f"text by {type(writer).__name__}", "text that the teacher wrote: StoredText")
            continue
        if not isinstance(writer, OnPolicy):
            hint = "estimator='full' is right on any text"
            raise UserError(key, f"text by {type(writer).__name__}", "samples of the present student: OnPolicy", hint)
        temperature, decoding = part.options.get("temperature", 1.0), writer.decoding
        if decoding.top_p != 1 or decoding.temperature != temperature:
            raise UserError(
                key,
                f"samples at temperature {decoding.temperature} and top_p {decoding.top_p}",
                f"samples of what is compared: temperature {temperature}, top_p 1",
            )
