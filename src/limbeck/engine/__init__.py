"""The engine: distillers, phases and the trainer around them."""

from limbeck.engine.alternation import Alternation, Form, Turn
from limbeck.engine.checkpoints import Interrupted
from limbeck.engine.distiller import Distiller
from limbeck.engine.fit import History, fit
from limbeck.engine.generations import Generations
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.engine.peers import PeerDistiller
from limbeck.engine.program import Phase, run_program

__all__ = [
    "Alternation",
    "Distiller",
    "Form",
    "Generations",
    "History",
    "Interrupted",
    "OptimizerSettings",
    "PeerDistiller",
    "Phase",
    "Turn",
    "fit",
    "run_program",
]
