"""Self-distillation with weighted ground truth on two real kinds of network, at tiny size and without a download.

    python examples/gt-self-distill.py

1. The cheap case of production: a frozen transformers encoder (BertModel) and a ridge head on its sentence vectors.
   Every generation is a closed form, and the weight of the truth is chosen by one.
2. A transformers sequence classifier (BertForSequenceClassification) that is trained again and again from fresh
   weights, each generation taught by the one before it.

Put your own encoder, texts and labels in place of the random ones.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from limbeck import Generations, OptimizerSettings, TensorLoader
from limbeck.objectives import with_weight_norm
from limbeck.systems.theory.gt_self_distill.kernel import KernelSelfDistiller
from limbeck.systems.theory.gt_self_distill.method import NetworkSelfDistiller

CLASSES, LENGTH = 3, 12
CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=LENGTH,
    num_labels=CLASSES,
)


def texts(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``[count, 12]``; the label is the third of the vocabulary that the first token is from."""
    ids = torch.randint(60, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return ids, ids[:, 0] // 20


def ridge_head() -> tuple[KernelSelfDistiller, float]:
    """A ridge head on a frozen encoder's first-token vectors, its chain, and the accuracy on test texts."""
    torch.manual_seed(0)
    encoder = BertModel(CONFIG).eval()

    def vectors(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return encoder(input_ids=ids).last_hidden_state[:, 0]

    (train, label), (held_out, held_out_label), (test, test_label) = (texts(120, seed) for seed in range(3))
    # There is no intercept, so the targets are centred.
    targets = [torch.nn.functional.one_hot(one, CLASSES) - 1 / CLASSES for one in (label, held_out_label)]
    head = KernelSelfDistiller("optimal", ridge=5.0, generations=4, kernel="linear")
    head.fit(vectors(train), targets[0], validation=(vectors(held_out), targets[1]))
    said = torch.from_numpy(head.predict(vectors(test))).argmax(dim=-1)
    return head, float((said == test_label).double().mean())


def classifier_chain(generations: int = 3, epochs: int = 2) -> NetworkSelfDistiller:
    """A chain of sequence classifiers; alpha is estimated before every generation."""
    ids, label = texts(96, 0)
    samples = {"input": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "target": label}
    held_out, held_out_label = texts(48, 1)
    validation = {
        "input": {"input_ids": held_out, "attention_mask": torch.ones_like(held_out)},
        "target": held_out_label,
    }
    chain = Generations(
        lambda number: BertForSequenceClassification(CONFIG),
        TensorLoader(samples, 16),
        epochs=epochs,
        optimizer=OptimizerSettings("adam", lr=3e-3, weight_decay=0.0, schedule="constant"),
        cached=True,
        forward=with_weight_norm,
        accelerator="cpu",
    )
    return NetworkSelfDistiller(chain, "optimal", validation=TensorLoader(validation, 16)).fit(generations)


def main() -> None:
    head, accuracy = ridge_head()
    weights = ", ".join(f"{one.weight.alpha:.2f}" for one in head.chain_)
    print(f"ridge head on BertModel: alpha {weights}; accuracy {accuracy:.2f}")
    left = head.sparsification(alpha=head.chain_[-1].weight.alpha).degrees_of_freedom
    print("degrees of freedom at the last alpha: " + ", ".join(f"{one:.1f}" for one in left))
    method = classifier_chain()
    estimates = ", ".join(f"{one.alpha:.2f} (unclipped {one.unclipped:.2f})" for one in method.weights)
    print(f"BertForSequenceClassification: {method.chain.number} generations; alpha {estimates}")


if __name__ == "__main__":
    main()
