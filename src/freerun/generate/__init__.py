"""Free running: greedy, sampling and beam search for anything with a forward; no gold is seen but a prompt."""

from freerun.generate.beam import Generated
from freerun.generate.free import generate

__all__ = ["Generated", "generate"]
