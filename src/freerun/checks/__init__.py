"""Checks of a model: change what its outputs must not depend on, and see that they do not move."""

from freerun.checks.report import Finding, Report
from freerun.checks.run import check_model, examine

__all__ = ["Finding", "Report", "check_model", "examine"]
