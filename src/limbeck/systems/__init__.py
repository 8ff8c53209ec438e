"""The systems: one published method per folder ``FAMILY/SLUG``, found by :mod:`limbeck.systems.registry`."""

from limbeck.systems.registry import Card, card, experiments, new_system, systems, verdicts

__all__ = ["Card", "card", "experiments", "new_system", "systems", "verdicts"]
