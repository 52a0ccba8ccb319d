"""A configuration for other machines: the fewest moves that keep the global batch and the meaning.

First what the new machines demand, whatever the memory: a batch that divides, a number format that the card
has.  Then, where the job does not fit, a breadth-first search over moves that leave the training as it is;
among equally few moves the fastest wins.
"""

from __future__ import annotations

from trimtab.adapt.adapting import adapt, named_model
from trimtab.adapt.answer import Adaptation, Nearest, Step
from trimtab.adapt.search import Estimates
from trimtab.cost.need import SURE

__all__ = ["SURE", "Adaptation", "Estimates", "Nearest", "Step", "adapt", "named_model"]
