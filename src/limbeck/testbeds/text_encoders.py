"""Small text encoders made from nothing: word pieces, word vectors from counts, pairs of views, unsupervised SimCSE.

A network of this size learns what words mean from counts in seconds and from gradients in hours: minutes of masked
language modelling teach it how frequent words are. So its word vectors are counted, and its training goes into what no
count gives: reading two texts at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import losses
from limbeck.data.loaders import TensorLoader
from limbeck.data.store import cache_folder, content_hash, locked, written_aside
from limbeck.errors import require
from limbeck.models.pairs import CrossEncoder, transfer_body
from limbeck.models.sentence import EXTRA, SentenceEncoder
from limbeck.models.word_pieces import open_word_pieces, word_pieces
from limbeck.testbeds.recipe import seeded, warm_cosine


@dataclass(frozen=True)
class Shape:
    """A BERT of this size. ``max_length`` is the longest single text in tokens; a pair may be twice as long."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    inner: int = 256
    vocabulary: int = 6000
    max_length: int = 32


@dataclass(frozen=True)
class Pretraining:
    """Two views of a text in one row, or of two texts (the plain model); then SimCSE on single texts.

    A view of a text lacks some of its words.

    Attributes:
        pair_samples, simcse_samples: texts seen, in one or more epochs.
        pair_lr, simcse_lr: the peak of AdamW's rate, reached after a twentieth of the steps; it falls to zero.
        pair_hidden, simcse_hidden: share of words that a view lacks. (Mirror-BERT hides spans; with dropout alone a
            small network tells short texts apart from the first step.)
        temperature: of SimCSE.
        pooling: of the sentence encoder.
        seed: of the initial weights, the order, the views and dropout.
        version: raised whenever what is made changes, so that kept weights are never stale.
    """

    pair_samples: int = 38_400
    pair_batch: int = 64
    pair_lr: float = 1e-3
    pair_hidden: float = 0.4
    simcse_samples: int = 25_600
    simcse_batch: int = 128
    simcse_lr: float = 5e-4
    simcse_hidden: float = 0.3
    temperature: float = 0.05
    pooling: str = "mean"
    seed: int = 0
    version: int = 3


def tokenizer_of(texts: Sequence[str], size: int, name: str) -> Any:
    """A word-piece tokenizer of ``size`` pieces, made once from ``texts`` and kept in the cache folder."""
    key = content_hash({"texts": list(texts), "size": size, "version": 1})[:16]
    path = cache_folder("tokenizers") / f"{name}-{key}.json"
    with locked(path.stem):
        if not path.is_file():
            made = word_pieces(texts, size)
            with written_aside(path) as aside:
                made.backend_tokenizer.save(str(aside))
    return open_word_pieces(path)


def word_vectors(texts: Sequence[str], tokenizer: Any, width: int) -> Tensor:
    """A vector per token ``[vocabulary, width]`` from the texts that it shares with others.

    The left singular vectors of positive pointwise mutual information (Levy and Goldberg, NIPS 2014), the leading one
    first; zeros, but for rounding, for tokens that never occur.
    """
    from scipy.sparse import csr_matrix
    from sklearn.utils.extmath import randomized_svd

    rows = [np.unique(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    size = len(tokenizer)
    places = np.cumsum([0, *(len(row) for row in rows)])
    shared = csr_matrix(
        (np.ones(places[-1], np.float32), np.concatenate(rows).astype(np.int64), places), (len(rows), size)
    )
    together = (shared.T @ shared).tocoo()
    count = np.asarray(shared.sum(0)).ravel() + 1
    information = np.log(together.data * len(rows) / (count[together.row] * count[together.col]))
    kept = (information > 0) & (together.row != together.col)
    matrix = csr_matrix((information[kept], (together.row[kept], together.col[kept])), (size, size))
    return torch.from_numpy(randomized_svd(matrix, width, n_iter=3, random_state=0)[0]).float()


def blank(shape: Shape, tokenizer: Any) -> Any:
    """A transformers ``BertModel`` with fresh weights."""
    transformers = require("transformers", EXTRA)
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
            # Drawing it costs a fifth of the time.
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=2 * shape.max_length,
            pad_token_id=tokenizer.pad_token_id,
        ),
        add_pooling_layer=False,
    )


@torch.no_grad()
def prepare(body: Any, words: Tensor, *, scale: float = 0.05, similar: float = 0.8, opposite: float = 0.5) -> None:
    """Initial weights with which a network sees from the first step which tokens are alike.

    Every token gets its row of ``words``, of length ``scale * sqrt(width)``. In every head queries equal keys,
    ``similar`` times a random projection, so that tokens attend to their likes; values and the output layer multiply
    to ``-opposite`` times the identity, so that a token that finds its like loses part of itself and one that does
    not stays (Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, ICML 2023). From the usual
    weights, minutes of training do not find how to compare.
    """
    lengths = words.norm(dim=1, keepdim=True)
    # Rows that are zero but for rounding have no direction.
    unit = torch.where(lengths > 1e-4, words / lengths.clamp_min(1e-4), words)
    body.embeddings.word_embeddings.weight.copy_(scale * words.shape[1] ** 0.5 * unit)
    for layer in body.encoder.layer:
        attention, output = layer.attention.self, layer.attention.output
        for rows in attention.query.weight.split(attention.attention_head_size):
            nn.init.orthogonal_(rows, similar)
        attention.key.weight.copy_(attention.query.weight)
        nn.init.orthogonal_(attention.value.weight, opposite**0.5)
        output.dense.weight.copy_(-attention.value.weight.T)


def train_pairs(body: nn.Module, tokenizer: Any, texts: Sequence[str], plan: Pretraining) -> None:
    """Tell two views of one text from views of two texts, both in one row, in place: needs no label.

    What next-sentence prediction is to BERT: the network learns to read two texts at once. The head is thrown away.
    """
    model = seeded(lambda: CrossEncoder.on(body, tokenizer), plan.seed)
    collate = model.collate()
    generator = torch.Generator().manual_seed(plan.seed)

    def loss(texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        same = torch.rand(len(texts), generator=generator) < 0.5
        # The next of the batch has about the same length.
        others = [texts[i if same[i] else i - 1] for i in range(len(texts))]
        first = [view(text, plan.pair_hidden, 2 * seed) for text, seed in zip(texts, seeds, strict=True)]
        second = [view(text, plan.pair_hidden, 2 * seed + 1) for text, seed in zip(others, seeds, strict=True)]
        logits = model(**collate(list(zip(first, second, strict=True))))["logits"]
        return losses.soft_bce(logits, same.float())

    # Far from one epoch too many: dropout would only cost time.
    _train(model.eval(), texts, loss, plan.pair_samples, plan.pair_batch, plan.pair_lr, plan.seed)
    transfer_body(model, body)


def train_simcse(encoder: SentenceEncoder, texts: Sequence[str], plan: Pretraining) -> None:
    """Unsupervised SimCSE, in place: dropout and missing words make two views of a text, other texts are negatives.

    Gao, Yao and Chen, SimCSE: Simple Contrastive Learning of Sentence Embeddings, EMNLP 2021.
    """

    def loss(texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        views = [view(text, plan.simcse_hidden, 2 * seed) for text, seed in zip(texts, seeds, strict=True)]
        views += [view(text, plan.simcse_hidden, 2 * seed + 1) for text, seed in zip(texts, seeds, strict=True)]
        first, second = encoder(**encoder.tokenize(views))["embedding"].chunk(2)
        return losses.info_nce(first, second, temperature=plan.temperature)

    _train(encoder.train(), texts, loss, plan.simcse_samples, plan.simcse_batch, plan.simcse_lr, plan.seed)


def view(text: str, hidden: float, seed: int) -> str:
    """The text without a share of its words, but never without all."""
    rng = random.Random(seed)
    return " ".join(word for word in text.split() if rng.random() >= hidden) or text


def _train(
    model: nn.Module, texts: Sequence[str], loss: Any, samples: int, batch_size: int, lr: float, seed: int
) -> None:
    loader = TensorLoader(
        {"input": list(texts)},
        batch_size,
        seed=seed,
        drop_last=True,
        transform=lambda batch: batch,
        lengths=[len(text) for text in texts],
    )
    steps = max(samples // batch_size, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step / steps))
    with torch.random.fork_rng(devices=[]):
        # Dropout must not depend on what was drawn before.
        torch.manual_seed(seed)
        done = 0
        while done < steps:
            for batch in loader:
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss(batch["input"], batch["view"].tolist()))
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                done += 1
                if done == steps:
                    break
    model.eval()
