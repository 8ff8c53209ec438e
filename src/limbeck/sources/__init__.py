"""Sources: whatever can stand in a teacher's place."""

from limbeck.sources.average import Average
from limbeck.sources.base import Source
from limbeck.sources.cached import Cached
from limbeck.sources.continued import Continued
from limbeck.sources.head_applied import HeadApplied
from limbeck.sources.live import Live
from limbeck.sources.pseudo_labels import PseudoLabels
from limbeck.sources.routed import Routed
from limbeck.sources.server import Server
from limbeck.sources.stored import ClassVectors, Given, Table
from limbeck.sources.student import EMA, Snapshot

__all__ = [
    "EMA",
    "Average",
    "Cached",
    "ClassVectors",
    "Continued",
    "Given",
    "HeadApplied",
    "Live",
    "PseudoLabels",
    "Routed",
    "Server",
    "Snapshot",
    "Source",
    "Table",
]
