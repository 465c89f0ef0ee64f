"""From a model and batches of one's own to a decision, in Python."""

from freerun.experiments.arms import Control, compare, control, fit, matched_noise
from freerun.experiments.measure import diagnose, evaluate
from freerun.experiments.results import Comparison, Diagnosis, Evaluation

__all__ = [
    "Comparison",
    "Control",
    "Diagnosis",
    "Evaluation",
    "compare",
    "control",
    "diagnose",
    "evaluate",
    "fit",
    "matched_noise",
]
