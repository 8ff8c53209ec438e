"""Losses: pure functions of tensors that need nothing but torch.

Every one takes ``mask``, ``weight``, ``reduction`` and ``denominator``; see :func:`reduce_rows` for their
rule. None detaches its inputs unless its docstring says so: objectives stop gradients.

Every docstring has three lines that ``tools/loss_table.py`` reads for docs/losses.md: ``Formula: ...``,
``Source: ...`` and ``Batch-wise: no`` or ``Batch-wise: yes, why`` (the value of a row depends on other rows).
"""

from __future__ import annotations

from limbeck.losses.aligned import likelihood_matching, span_places, span_sums, universal_logit_distance
from limbeck.losses.classification import cross_entropy, decoupled_kd, logit_standardisation, standardised_kl
from limbeck.losses.clipping import Ranked, clipped_kl, kept_mass, ranked_classes, window, windowed_kl
from limbeck.losses.contrastive import info_nce, nt_xent, soft_info_nce, supervised_contrastive
from limbeck.losses.correlation import dist, dist_inter, dist_intra, pearson_distance, soft_ranks, spearman
from limbeck.losses.distributions import (
    amplitude_and_phase,
    characteristic_discrepancy,
    characteristic_function,
    gaussian_mmd,
    mean_discrepancy,
)
from limbeck.losses.divergences import (
    coarsen,
    entropy,
    forward_kl,
    jeffreys,
    jensen_shannon,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from limbeck.losses.features import (
    attention_transfer,
    cosine_distance,
    huber,
    mse,
    normalised_l1,
    normalised_mse,
    smooth_l1,
    unit_vectors,
)
from limbeck.losses.masks import iou_regression, mask_dice, mask_focal, mask_overlap
from limbeck.losses.noise_contrastive import crd, crd_log_normaliser
from limbeck.losses.positions import affinity, gram, self_attention_relations
from limbeck.losses.ranking import list_mle, list_net, margin_mse, pairwise_logistic, plackett_luce
from limbeck.losses.reduce import reduce_rows
from limbeck.losses.relations import (
    cka,
    rkd_angle,
    rkd_distance,
    similarity_distribution,
    similarity_preserving,
)
from limbeck.losses.sampled import (
    keep_top,
    sampled_forward_kl,
    sampled_jensen_shannon,
    sampled_reverse_kl,
    token_log_probs,
)
from limbeck.losses.score import denoising, score_identity, toward_target
from limbeck.losses.scores import score_mse, soft_bce
from limbeck.losses.selection import selected_tokens
from limbeck.losses.spans import span_product
from limbeck.losses.squared import brier, probability_mse
from limbeck.losses.transport import SinkhornPlan, class_transport, sinkhorn_distance, sinkhorn_plan
from limbeck.losses.vocabulary import linear_cross_entropy, linear_divergence, linear_sparse_divergence

__all__ = [
    "Ranked",
    "SinkhornPlan",
    "affinity",
    "amplitude_and_phase",
    "attention_transfer",
    "brier",
    "characteristic_discrepancy",
    "characteristic_function",
    "cka",
    "class_transport",
    "clipped_kl",
    "coarsen",
    "cosine_distance",
    "crd",
    "crd_log_normaliser",
    "cross_entropy",
    "decoupled_kd",
    "denoising",
    "dist",
    "dist_inter",
    "dist_intra",
    "entropy",
    "forward_kl",
    "gaussian_mmd",
    "gram",
    "huber",
    "info_nce",
    "iou_regression",
    "jeffreys",
    "jensen_shannon",
    "keep_top",
    "kept_mass",
    "likelihood_matching",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_sparse_divergence",
    "list_mle",
    "list_net",
    "logit_standardisation",
    "margin_mse",
    "mask_dice",
    "mask_focal",
    "mask_overlap",
    "mean_discrepancy",
    "mse",
    "normalised_l1",
    "normalised_mse",
    "nt_xent",
    "pairwise_logistic",
    "pearson_distance",
    "plackett_luce",
    "probability_mse",
    "ranked_classes",
    "reduce_rows",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "sampled_forward_kl",
    "sampled_jensen_shannon",
    "sampled_reverse_kl",
    "score_identity",
    "score_mse",
    "selected_tokens",
    "self_attention_relations",
    "similarity_distribution",
    "similarity_preserving",
    "sinkhorn_distance",
    "sinkhorn_plan",
    "skewed_kl",
    "skewed_reverse_kl",
    "smooth_l1",
    "soft_bce",
    "soft_cross_entropy",
    "soft_info_nce",
    "soft_ranks",
    "span_places",
    "span_product",
    "span_sums",
    "spearman",
    "standardised_kl",
    "supervised_contrastive",
    "token_log_probs",
    "total_variation",
    "toward_target",
    "unit_vectors",
    "universal_logit_distance",
    "window",
    "windowed_kl",
]
