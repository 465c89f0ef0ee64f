"""Which packages an installation would not have: what is installed here and not in the closure of freerun[extra]."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, files, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = ("", *(extra for extra in PROJECT["optional-dependencies"] if extra != "dev"))


def named(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def closure(extra: str) -> set[str]:
    """The names of all packages that pip installs for freerun with an extra ("": none)."""
    waiting = [Requirement(line) for line in PROJECT["dependencies"]]
    waiting += [Requirement(line) for line in PROJECT["optional-dependencies"][extra]] if extra else []
    seen: set[tuple[str, frozenset[str]]] = {("freerun", frozenset())}
    while waiting:
        one = waiting.pop()
        key = (named(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            lines = requires(one.name) or []
        except PackageNotFoundError:
            continue
        for each in map(Requirement, lines):
            environments = [{"extra": ""}, *({"extra": extra} for extra in one.extras)]
            if each.marker is None or any(each.marker.evaluate(environment) for environment in environments):
                waiting.append(each)
    return {name for name, _ in seen}


def absent(extra: str) -> str:
    """``ABSENT`` for ``absent/sitecustomize.py``: the modules, and the packages, that freerun[extra] does not bring."""
    there = closure(extra)
    homes = {module: set(map(named, packages)) for module, packages in packages_distributions().items()}
    # Ray brings copies of its own of these
    copies = re.findall(r"/thirdparty_files/(\w+)", "\n".join(map(str, files("ray") or ())))
    own = set(copies) if "ray" in there else set[str]()
    modules = [module for module, packages in homes.items() if not packages & there and module not in own]
    return ",".join(sorted(modules)) + ";" + ",".join(sorted(set().union(*homes.values()) - there))
