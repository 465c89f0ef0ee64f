"""The recipes that come with freerun: in the package once installed, in the repository's ``recipes/`` folder here."""

from __future__ import annotations

from pathlib import Path

from freerun.config.source import nearest
from freerun.errors import UserError

__all__ = ["find_recipe", "shipped_recipes"]

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with freerun.

    >>> "g2p-demo" in shipped_recipes()
    True
    """
    for folder in (_PACKAGE / "_recipes", _PACKAGE.parent.parent / "recipes"):
        if found := sorted(folder.glob("*.toml")):
            return {path.stem: path for path in found}
    return {}


def find_recipe(path: str | Path) -> Path:
    """The file a user means: a file that exists, or the name of a shipped recipe, also beside a folder of that name.

    Args:
        path: a file, ``g2p-demo``, or ``recipes/g2p-demo.toml`` away from a clone.

    Raises:
        UserError: where it is a folder or a bare name that nothing goes by.
    """
    path = Path(path)
    shipped = shipped_recipes()
    if path.exists() and not path.is_dir():
        return path
    if path.parent in (Path(), Path("recipes")) and path.name.removesuffix(".toml") in shipped:
        return shipped[path.name.removesuffix(".toml")]
    if path.is_dir():
        raise UserError(f"{path} is a folder; a recipe is a .toml file")
    if path.suffix != ".toml" and path.parent == Path():
        near = nearest(path.name, shipped)
        meant = f"did you mean {near}?" if near else f"those that come with freerun are {', '.join(shipped)}"
        raise UserError(f"there is no recipe {str(path)!r}\n  help: {meant}")
    return path
