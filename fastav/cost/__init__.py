"""What training costs: the step of any method on any pair of backbones, checked, timed and weighed."""

from fastav.cost.measure import Cost, frozen_forward, measure_cost
from fastav.cost.memory import Peak, peak
from fastav.cost.methods import METHODS, OURS, build_method, build_step, random_inputs
from fastav.cost.proof import WrongError, check
from fastav.cost.saved import saved_for_backward
from fastav.cost.step import PARTS, PLACES, Step
from fastav.cost.timing import Spread

__all__ = [
    "METHODS",
    "OURS",
    "PARTS",
    "PLACES",
    "Cost",
    "Peak",
    "Spread",
    "Step",
    "WrongError",
    "build_method",
    "build_step",
    "check",
    "frozen_forward",
    "measure_cost",
    "peak",
    "random_inputs",
    "saved_for_backward",
]
