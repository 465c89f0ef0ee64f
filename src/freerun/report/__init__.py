"""report.html: one page that says how a comparison came out, and shows why; works offline."""

from freerun.report.comparison import write

__all__ = ["write"]
