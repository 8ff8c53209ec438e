"""Small text encoders made from nothing: word pieces, word vectors, masked language modelling, unsupervised SimCSE."""

from __future__ import annotations

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
from limbeck.models.pairs import PairCollate
from limbeck.models.sentence import EXTRA, SentenceEncoder
from limbeck.models.word_pieces import open_word_pieces, word_pieces
from limbeck.testbeds.recipe import warm_cosine


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
    """Masked language modelling on pairs of texts, then SimCSE on single ones.

    A network of this size learns what words mean from counts in seconds and from gradients in hours, so the embeddings
    of its tokens begin as :func:`word_vectors`.

    Attributes:
        mlm_samples, simcse_samples: texts seen, in one or more epochs.
        mlm_lr, simcse_lr: the peak of AdamW's rate, reached after a twentieth of the steps; it falls to zero.
        masked: share of tokens to be guessed; of these 80% are masked, 10% replaced at random, 10% left.
        temperature: of SimCSE. ``hidden``: share of tokens that each of its two views does not see (after Mirror-BERT,
            which hides spans); with dropout alone a small network tells short texts apart from the first step.
        pooling: of the sentence encoder.
        seed: of the initial weights, the order, the masks and dropout.
        version: raised whenever what is made changes, so that kept weights are never stale.
    """

    mlm_samples: int = 32_000
    mlm_batch: int = 64
    mlm_lr: float = 1e-3
    masked: float = 0.15
    simcse_samples: int = 25_600
    simcse_batch: int = 128
    simcse_lr: float = 5e-4
    temperature: float = 0.05
    hidden: float = 0.3
    pooling: str = "mean"
    seed: int = 0
    version: int = 2


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


def word_vectors(texts: Sequence[str], tokenizer: Any, width: int, *, scale: float = 0.05) -> Tensor:
    """A vector per token ``[vocabulary, width]`` from the texts that it shares with others.

    The left singular vectors of positive pointwise mutual information (Levy and Goldberg, NIPS 2014), each row of
    length ``scale * sqrt(width)``; tokens that never occur get small ones.
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
    vectors = torch.from_numpy(randomized_svd(matrix, width, n_iter=3, random_state=0)[0]).float()
    lengths = vectors.norm(dim=1, keepdim=True)
    # Rows that are zero but for rounding have no direction.
    return scale * width**0.5 * torch.where(lengths > 1e-4, vectors / lengths.clamp_min(1e-4), vectors)


def language_model(shape: Shape, tokenizer: Any) -> nn.Module:
    """A masked language model (transformers' ``BertForMaskedLM``) with fresh weights."""
    transformers = require("transformers", EXTRA)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        # Drawing it costs a fifth of the time.
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=2 * shape.max_length,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: nn.Module = transformers.BertForMaskedLM(config)
    return model


def train_mlm(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], plan: Pretraining) -> Any:
    """Guess masked tokens of pairs of texts, in place."""
    length = int(model.config.max_position_embeddings)
    loader = TensorLoader(
        {"input": list(pairs)},
        plan.mlm_batch,
        seed=plan.seed,
        drop_last=True,
        collate=PairCollate(tokenizer, True, length),
        lengths=[len(first) + len(second) for first, second in pairs],
    )
    special = torch.tensor(tokenizer.all_special_ids)
    generator = torch.Generator().manual_seed(plan.seed)

    def loss(tokens: dict[str, Tensor]) -> Tensor:
        ids, guessed = mask_tokens(tokens["input_ids"], special, tokenizer, plan.masked, generator)
        hidden = model.bert(**{**tokens, "input_ids": ids}).last_hidden_state
        # Only what is guessed meets the vocabulary, which is most of the work.
        return losses.cross_entropy(model.cls(hidden[guessed]), tokens["input_ids"][guessed])

    # Far from one epoch too many: dropout would only cost time.
    _train(model.eval(), loader, loss, plan.mlm_samples, plan.mlm_lr, plan.seed)
    return model


def mask_tokens(
    ids: Tensor, special: Tensor, tokenizer: Any, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Ids with some tokens hidden, and which (bool); special tokens are never hidden."""
    drawn = torch.rand(ids.shape, generator=generator)
    guessed = (drawn < share) & ~torch.isin(ids, special)
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(tokenizer), ids.shape, generator=generator)
    hidden = torch.where(guessed & (how < 0.8), tokenizer.mask_token_id, ids)
    return torch.where(guessed & (how >= 0.9), other, hidden), guessed


def train_simcse(encoder: SentenceEncoder, texts: Sequence[str], plan: Pretraining) -> SentenceEncoder:
    """Unsupervised SimCSE, in place: dropout and hidden tokens make two views of a text, other texts are negatives.

    Gao, Yao and Chen, SimCSE: Simple Contrastive Learning of Sentence Embeddings, EMNLP 2021.
    """
    loader = TensorLoader(
        {"input": list(texts)},
        plan.simcse_batch,
        seed=plan.seed,
        drop_last=True,
        collate=encoder.tokenize,
        lengths=[len(text) for text in texts],
    )
    special = torch.tensor(encoder.tokenizer.all_special_ids)
    generator = torch.Generator().manual_seed(plan.seed)

    def loss(tokens: dict[str, Tensor]) -> Tensor:
        twice = {name: torch.cat([value, value]) for name, value in tokens.items()}
        unseen = torch.rand(twice["input_ids"].shape, generator=generator) < plan.hidden
        twice["attention_mask"] = twice["attention_mask"] * (~unseen | torch.isin(twice["input_ids"], special))
        first, second = encoder(**twice)["embedding"].chunk(2)
        return losses.info_nce(first, second, temperature=plan.temperature)

    _train(encoder.train(), loader, loss, plan.simcse_samples, plan.simcse_lr, plan.seed)
    return encoder


def _train(model: nn.Module, loader: TensorLoader, loss: Any, samples: int, lr: float, seed: int) -> None:
    steps = max(samples // loader.batch_size, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step / steps))
    with torch.random.fork_rng(devices=[]):
        # Dropout must not depend on what was drawn before.
        torch.manual_seed(seed)
        done = 0
        while done < steps:
            for batch in loader:
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss(batch["input"]))
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                done += 1
                if done == steps:
                    break
    model.eval()
