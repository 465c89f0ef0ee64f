"""A process with this folder on PYTHONPATH, and its children, are as if what ABSENT names were not installed.

It is neither found nor named by ``importlib.metadata``, so that libraries that look for it see what they would see.
"""

import os
import sys
from importlib.machinery import PathFinder

_MODULES, _, _PACKAGES = os.environ.get("ABSENT", "").partition(";")
MODULES, PACKAGES = frozenset(_MODULES.split(",")), frozenset(_PACKAGES.split(","))


class Finder:
    """The usual finder without them."""

    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in MODULES else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        found = PathFinder.find_distributions(*context)
        return (each for each in found if each.metadata["Name"].lower().replace("_", "-") not in PACKAGES)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
