"""What differs between a run as it was begun and as it is to go on, and whether it may."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from freerun.errors import CheckpointError, UserError

_NOTHING, _CODE = "nothing", ".code"

RENAMED_KEYS = {
    "data.longest": "data.max_length",
    "model.longest": "model.max_positions",
    "train.evaluate_words": "train.evaluate_items",
}
"""Keys of a recipe, dotted, as earlier versions wrote them -> what they are now."""


class Identity(TypedDict):
    """What a checkpoint knows of the run that it is of."""

    train: dict[str, Any]
    method: str
    data: str
    recipe: dict[str, Any]
    init: NotRequired[str]
    code: NotRequired[dict[str, str]]  # of functions among the method's arguments, whose repr is a name


@dataclass(frozen=True)
class Change:
    """A key with another value than the run was begun with."""

    key: str  # dotted, as a recipe writes it; "method" and "data" alone are its signature and their fingerprint
    before: Any  # "nothing" where there was none
    after: Any
    known: bool = True  # False for a key that this version of freerun does not know


@dataclass(frozen=True)
class Keys:
    """The keys of some sections."""

    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    non_semantic: frozenset[str] = frozenset()


def section_keys(others: Mapping[str, Any] | None = None, /, **sections: type[Any]) -> Keys:
    """Return the keys of sections from their dataclasses, with those of ``semantic=False`` apart.

    >>> @dataclass(frozen=True)
    ... class Train:
    ...     lr: float = 0.1
    ...     keep: int = field(default=2, metadata={"semantic": False})
    >>> section_keys(train=Train)
    Keys(defaults={'train.lr': 0.1, 'train.keep': 2}, non_semantic=frozenset({'train.keep'}))
    """
    listed = [(f"{name}.{each.name}", each) for name, cls in sections.items() for each in fields(cls)]
    defaults = dict.fromkeys(flat(others or {}), _NOTHING)
    for key, each in listed:
        default: Any = each.default if each.default_factory is MISSING else each.default_factory()
        defaults[key] = _NOTHING if default is MISSING else json.loads(json.dumps(default, default=dict))
    non_semantic = frozenset(key for key, each in listed if each.metadata.get("semantic") is False)
    return Keys(defaults, non_semantic)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value.

    >>> flat({"train": {"lr": 0.1}, "seed": 0})
    {'train.lr': 0.1, 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return leaves


def changes(before: Mapping[str, Any], after: Mapping[str, Any], keys: Keys) -> list[Change]:
    """Return the keys in which two runs differ and that change numbers; one that is not there has its default."""
    sections = {key.partition(".")[0] for key in keys.defaults}
    changed: list[Change] = []
    for key in dict.fromkeys([*before, *after]):
        if key in keys.non_semantic:
            continue
        section, _, rest = key.partition(".")
        name = f"{section}.{rest.partition('.')[0]}"
        default = keys.defaults.get(name, _NOTHING)
        for part in key.removeprefix(name).split(".")[1:]:
            default = default.get(part, _NOTHING) if isinstance(default, Mapping) else _NOTHING
        first, second = (json.loads(json.dumps(each.get(key, default))) for each in (before, after))
        if first != second:
            changed.append(Change(key, first, second, not rest or section not in sections or name in keys.defaults))
    other = {change.key.partition(".")[0] for change in changed if change.key.endswith(".kind")}
    # of another kind of data or model all other keys are others too
    return [c for c in changed if c.key.partition(".")[0] not in other or c.key.endswith(".kind")]


def allowed(change: Change, allow: Collection[str]) -> bool:
    """Return True if a change may be made: its key is allowed, or a section that has it.

    >>> allowed(Change("method.gate", "token", "step"), ["method"]), allowed(Change("data", "0a", "0b"), ["data.train"])
    (True, True)
    """
    section = change.key in ("data", "method")
    return change.known and any(
        f"{change.key}.".startswith(f"{key}.") or (section and key.startswith(f"{change.key}.")) for key in allow
    )


def check_allow(allow: Collection[str], keys: Keys, *, resume: bool) -> None:
    """Refuse leave for what is no key, or where nothing is gone on with."""
    known = [*keys.defaults, *{key.partition(".")[0] for key in keys.defaults}, "seed", "data", "method", "init"]
    problems: list[str] = []
    if allow and not resume:
        problems.append(f"--allow-change {' '.join(allow)} has no effect without --resume\n  help: leave it out")
    for key in allow:
        if key not in known and not key.startswith("method."):
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean {near[0]}?" if near else "give a key as the refusal names it: train.lr, data, method"
            problems.append(f"--allow-change {key}: there is no such key\n  help: {meant}")
    if problems:
        raise UserError(problems)


def flags(changed: Iterable[Change]) -> str:
    """Return the options of the command line that allow changes.

    >>> flags([Change("train.lr", 1, 2), Change("data.train", 1, 2), Change("data", "0a", "0b")])
    '--allow-change train.lr --allow-change data'
    """
    sections = [(change.key, change.key.partition(".")[0]) for change in changed if change.known]
    listed = dict.fromkeys(section if section in ("data", "method") else key for key, section in sections)
    return " ".join(f"--allow-change {key}" for key in listed)


def refused(changed: Iterable[Change], allow: Collection[str]) -> tuple[list[Change], str]:
    """Return the changes that are not allowed, and what to do about them in words."""
    left = [change for change in changed if not allowed(change, allow)]
    unknown = [change.key for change in left if not change.known]
    if unknown:
        return left, f"this freerun does not know {', '.join(unknown)}: go on with the one that began the run"
    return left, f"to go on with the change, which is written down: {flags(left)}"


class OtherRunError(CheckpointError):
    """A checkpoint belongs to another run."""


def refuse_other(
    path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Keys, allow: Collection[str] = ()
) -> list[Change]:
    """Refuse to go on with a run of other settings, data or method; the changes that are allowed.

    >>> refuse_other(Path("step-1"), {"train": {"lr": 0.1}}, {"train": {"lr": 0.2}}, Keys(), ["train.lr"])
    [Change(key='train.lr', before=0.1, after=0.2, known=True)]
    """
    before, now = _named(theirs), _named(ours)
    if "init" not in now:  # the checkpoint's weights already come from there
        before.pop("init", None)
    both = before.keys() & now.keys()  # an earlier version wrote no code
    before, now = (
        {key: value for key, value in each.items() if key in both or not key.endswith(_CODE)} for each in (before, now)
    )
    changed = changes(before, now, keys)
    # a schedule over all updates follows from their number, where the method's own keys are known and compared
    own = [key for key in before if key.startswith("method.") and not key.endswith(_CODE)]
    follows = bool(own) and not any(key.endswith(".measured") for key in before)
    moved = follows and any(change.key == "train.updates" for change in changed)
    left, advice = refused([change for change in changed if not (moved and change.key == "method")], allow)
    if left:
        problems = [f"{c.key}: the checkpoint has {c.before}, this run {c.after}" for c in left]
        begin = f"{path} belongs to another run; go on with its recipe, or begin in another folder"
        raise OtherRunError("\n  ".join([begin, *problems, f"help: {advice}"]))
    return changed


def with_new_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run of an earlier version with the keys of this one.

    >>> with_new_keys({"data": {"kind": "toy", "longest": 4}})
    {'data': {'kind': 'toy', 'max_length': 4}}
    """

    def renamed(section: str, table: dict[str, Any]) -> dict[str, Any]:
        names = {key: RENAMED_KEYS.get(f"{section}.{key}", f"{section}.{key}") for key in table}
        return {names[key].partition(".")[2]: value for key, value in table.items()}

    return {name: renamed(name, value) if isinstance(value, dict) else value for name, value in recipe.items()}


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity by a recipe's keys; its [train] is compared as such, arms are other runs."""
    recipe = {
        key: value for key, value in flat(with_new_keys(identity.get("recipe", {}))).items()
        if key not in ("name", "seed") and not key.startswith(("train.", "compare."))
    }  # fmt: skip
    named = flat(with_new_keys({key: value for key, value in identity.items() if key not in ("recipe", "code")}))
    named |= {f"method.{name}{_CODE}": value for name, value in identity.get("code", {}).items()}
    if "train.seed" in named:
        named["seed"] = named.pop("train.seed")
    recipe.pop("data.path", None)  # data that were moved are the same: the fingerprint differs for others
    return recipe | named
