"""Trans-Encoder on real transformers classes, at tiny size and without a download.

    python examples/trans-encoder.py

Two bi-encoders of different kind, width and depth (BertModel, RobertaModel) label sentence pairs for two cross-encoders
(BertForSequenceClassification, RobertaForSequenceClassification) and back. What comes out opens in
sentence-transformers.

Here the networks are random and the pairs a handful. In earnest, put

    SentenceEncoder.from_folder("unsup-simcse-bert-base-uncased", pooling="cls")

in their place, give ``plain=`` the language models that they were made from, drop ``cross=`` and ``bi=`` (the defaults
are for networks of that size), and read the pairs with ``read_pairs("pairs.tsv")``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder as LibraryCrossEncoder
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, BertConfig, RobertaConfig

from limbeck.data.text_pairs import read_pairs
from limbeck.models.sentence import SentenceEncoder
from limbeck.models.word_pieces import word_pieces
from limbeck.objectives import ScoreBCE
from limbeck.systems.retrieval.trans_encoder.method import Recipe, TransEncoder

PAIRS = """a cat sleeps on the sofa||the cat is asleep
two men play chess||a game of chess between men
rain falls on the city||it is raining in town
a child reads a book||the stock market fell
a dog runs in the park||the dog is running outside
she cooks soup||a woman makes a meal
the train is late||a bird sings
he plays the violin||a man makes music
"""


def encoders() -> list[SentenceEncoder]:
    """A random BERT and a random RoBERTa, each with its own tokenizer."""
    texts = PAIRS.replace("||", "\n").splitlines()
    torch.manual_seed(0)
    made = []
    for config, width, layers, size in ((BertConfig, 24, 2, 120), (RobertaConfig, 16, 1, 90)):
        tokenizer = word_pieces(texts, size)
        body = AutoModel.from_config(
            config(
                vocab_size=len(tokenizer),
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=2,
                intermediate_size=2 * width,
                max_position_embeddings=70,
                type_vocab_size=2,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        made.append(SentenceEncoder(body, tokenizer, pooling="cls", max_length=32))
    return made


def distil(folder: Path, cycles: int = 2) -> TransEncoder:
    """Mutual distillation with checkpoints and labels in ``folder``; a run that is cut goes on with ``resume=True``."""
    file = folder / "pairs.txt"
    file.write_text(PAIRS)
    method = TransEncoder(
        encoders(),
        cycles=cycles,
        cross=Recipe(epochs=1, batch_size=4, lr=1e-3, warmup=0.1, objective=ScoreBCE),
        bi=Recipe(epochs=2, batch_size=4, lr=1e-3),
        out=folder / "run",
        accelerator="cpu",
    )
    return method.fit(read_pairs(file))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        method = distil(folder)
        print(f"pairs: {method.counts_}")
        rounds = [f"cycle {one.cycle}: {one.rows} labels of {one.producer}" for one in method.labels_.rounds()]
        print("\n".join(rounds))
        method.choose("bi")[0].save_pretrained(folder / "bi")
        method.choose("cross")[0].save_pretrained(folder / "cross")
        pair = ("a cat sleeps", "the cat is asleep")
        vectors = SentenceTransformer(str(folder / "bi"), device="cpu").encode(list(pair))
        score = LibraryCrossEncoder(str(folder / "cross"), device="cpu").predict([pair])
        print(
            f"sentence-transformers: {vectors.shape[1]} numbers a sentence, cross-encoder score {float(score[0]):.3f}"
        )
        print(f"both encoders together: {float(method.predict([pair])[0]):.3f}")


if __name__ == "__main__":
    main()
