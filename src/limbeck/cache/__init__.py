"""The teacher cache on disk: signals by sample id and view seed, checked against what they were made from."""

from __future__ import annotations

from limbeck.cache.build import position_mask, write_cache
from limbeck.cache.codecs import codec
from limbeck.cache.contract import Codec
from limbeck.cache.costs import Estimate, estimate
from limbeck.cache.errors import (
    BadSignals,
    CacheError,
    DiskFull,
    EmptyCache,
    ForeignCache,
    LockedCache,
    MissingSamples,
    StaleCache,
    TornCache,
)
from limbeck.cache.fingerprint import (
    fingerprint_file,
    fingerprint_module,
    fingerprint_of,
    fingerprint_settings,
    fingerprint_tensors,
    fingerprint_text,
    fingerprint_tokenizer,
)
from limbeck.cache.frontier import Frontier, Point
from limbeck.cache.manifest import Manifest, Shard, SignalSpec
from limbeck.cache.reader import CacheReader
from limbeck.cache.tools import merge, recode, show, verify
from limbeck.cache.writer import CacheWriter

__all__ = [
    "BadSignals",
    "CacheError",
    "CacheReader",
    "CacheWriter",
    "Codec",
    "DiskFull",
    "EmptyCache",
    "Estimate",
    "ForeignCache",
    "Frontier",
    "LockedCache",
    "Manifest",
    "MissingSamples",
    "Point",
    "Shard",
    "SignalSpec",
    "StaleCache",
    "TornCache",
    "codec",
    "estimate",
    "fingerprint_file",
    "fingerprint_module",
    "fingerprint_of",
    "fingerprint_settings",
    "fingerprint_tensors",
    "fingerprint_text",
    "fingerprint_tokenizer",
    "merge",
    "position_mask",
    "recode",
    "show",
    "verify",
    "write_cache",
]
