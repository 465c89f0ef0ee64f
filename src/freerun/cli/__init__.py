"""The command ``freerun``. Nothing heavy is imported before a command needs it."""

from freerun.cli.entry import main

__all__ = ["main"]
