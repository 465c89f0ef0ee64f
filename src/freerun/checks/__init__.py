"""Is a model what the methods take it for? Asked by changing what it must not read and seeing what moves."""

from freerun.checks.report import Finding, Report
from freerun.checks.run import check_model, examine

__all__ = ["Finding", "Report", "check_model", "examine"]
