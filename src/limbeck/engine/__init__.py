"""The engine: distillers, phases and the trainer around them."""

from limbeck.engine.alternation import Alternation, Form, HalfCycle
from limbeck.engine.callbacks import Plateau
from limbeck.engine.checkpoints import Interrupted
from limbeck.engine.distiller import Distiller
from limbeck.engine.fit import History, fit
from limbeck.engine.generations import Generations
from limbeck.engine.one_class import OneClassRecipe, fit_good
from limbeck.engine.optimizer import OptimizerSettings
from limbeck.engine.peers import PeerDistiller
from limbeck.engine.players import Players, Turn
from limbeck.engine.program import Phase, run_program

__all__ = [
    "Alternation",
    "Distiller",
    "Form",
    "Generations",
    "HalfCycle",
    "History",
    "Interrupted",
    "OneClassRecipe",
    "OptimizerSettings",
    "PeerDistiller",
    "Phase",
    "Plateau",
    "Players",
    "Turn",
    "fit",
    "fit_good",
    "run_program",
]
