"""Walking what a context or a state is made of: containers, dataclasses and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

__all__ = ["difference", "leaves", "mapped", "snapshot"]


def leaves(tree: Any, path: str = "context") -> Iterator[tuple[str, Any]]:
    """What a tree of containers and dataclasses holds, each with its path; other objects are not looked into."""
    if isinstance(tree, Mapping):
        for name, part in cast(Mapping[Any, Any], tree).items():
            yield from leaves(part, f"{path}[{name!r}]")
    elif isinstance(tree, tuple | list):
        for n, part in enumerate(cast(Sequence[Any], tree)):
            yield from leaves(part, f"{path}[{n}]")
    elif is_dataclass(tree) and not isinstance(tree, type):
        for each in fields(tree):
            yield from leaves(getattr(tree, each.name), f"{path}.{each.name}")
    elif isinstance(tree, Tensor | int | float | str | None):
        yield path, tree


def mapped(tree: Any, change: Callable[[str, Tensor], Tensor], path: str = "context") -> Any:
    """The tree with its tensors changed, each given with its path."""
    if isinstance(tree, Tensor):
        return change(path, tree)
    if isinstance(tree, Mapping):
        items = cast(Mapping[Any, Any], tree).items()
        return {name: mapped(part, change, f"{path}[{name!r}]") for name, part in items}
    if isinstance(tree, tuple | list):
        parts = [mapped(part, change, f"{path}[{n}]") for n, part in enumerate(cast(Sequence[Any], tree))]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        named = ((each.name, getattr(tree, each.name)) for each in fields(tree) if each.init)
        return replace(tree, **{name: mapped(part, change, f"{path}.{name}") for name, part in named})
    return tree


def snapshot(tree: Any, path: str) -> dict[str, Any]:
    """What a tree holds, copied, to be compared with it later; weights are left out."""
    kept = ((at, leaf) for at, leaf in leaves(tree, path) if not isinstance(leaf, nn.Parameter))
    return {at: leaf.clone() if isinstance(leaf, Tensor) else leaf for at, leaf in kept}


def difference(before: dict[str, Any], tree: Any, path: str) -> str | None:
    """The path of the first part that is another than it was, or None."""
    after = {at: leaf for at, leaf in leaves(tree, path) if not isinstance(leaf, nn.Parameter)}
    for at in dict.fromkeys((*before, *after)):
        a, b = before.get(at), after.get(at)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all()):  # noqa: PLR0124 - NaN
                return at
        elif (at in before) != (at in after) or type(a) is not type(b) or a != b:
            return at
    return None
