"""Quantisation: networks in a few bits per weight.

Scaling by buckets, quantisers with gradients for weights and points, views that put quantised weights into a training,
allocation of points to tensors, and the packed file with its size.
"""

from limbeck.quantization.allocation import allocate_points, gradient_norms
from limbeck.quantization.huffman import code_lengths, mean_bits
from limbeck.quantization.quantisers import Coded, encode, levels, quantile_points, quantise, uniform_points
from limbeck.quantization.scaling import Scaled, Scaling
from limbeck.quantization.storage import PackedNetwork, SizeReport, pack_bits, unpack_bits
from limbeck.quantization.views import (
    LearnedPoints,
    QuantisedView,
    UniformWeights,
    first_and_last,
    weights_to_quantise,
)

__all__ = [
    "Coded",
    "LearnedPoints",
    "PackedNetwork",
    "QuantisedView",
    "Scaled",
    "Scaling",
    "SizeReport",
    "UniformWeights",
    "allocate_points",
    "code_lengths",
    "encode",
    "first_and_last",
    "gradient_norms",
    "levels",
    "mean_bits",
    "pack_bits",
    "quantile_points",
    "quantise",
    "uniform_points",
    "unpack_bits",
    "weights_to_quantise",
]
