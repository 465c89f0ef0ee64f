"""The section ``[compare]``: its arms, each with a method and a label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from freerun.config.check import check_keys, read_section
from freerun.config.methods import read_method
from freerun.config.recipe import Arm, CompareSettings
from freerun.config.source import Source
from freerun.config.toml_lines import KeyPath
from freerun.config.trained import Trained
from freerun.errors import shown, visible

if TYPE_CHECKING:
    from freerun.types import Step

__all__ = ["read_compare"]

_LABEL = re.compile(r"(?=.*[A-Za-z0-9]).{1,100}")


def read_compare(
    source: Source, known: tuple[Step | None, Trained], elsewhere: Mapping[str, str]
) -> CompareSettings | None:
    """The section ``[compare]`` with its arms, or None where a value is wrong; every problem is noted.

    Args:
        source: the settings.
        known: length of the run, and what is trained on what.
        elsewhere: key -> where it belongs, for keys of other sections.
    """
    section = source.table.get("compare")
    entries = section.get("arms") if isinstance(section, dict) else None
    entries = entries if isinstance(entries, list) else []
    labels = [_label(entry) for entry in entries]
    free = [label for entry, label in zip(entries, labels, strict=True) if label and not _is_matched(entry)]

    def arms(value: Any, path: KeyPath) -> tuple[Arm, ...]:
        if not isinstance(value, list):
            source.add(path, "arms must be tables: [[compare.arms]]", "each has a `method` and a `label`")
            return ()
        read = [_read_arm(source, (*path, i), entry, known, free) for i, entry in enumerate(value)]
        for i, label in enumerate(labels):
            if label and label in labels[:i]:
                source.add((*path, i, "label"), f"two arms are called {shown(label)}", "give each its own `label`")
        return tuple(arm for arm in read if arm is not None)

    settings = read_section(source, ("compare",), CompareSettings, elsewhere=elsewhere, readers={"arms": arms})
    if settings is not None and (not settings.seeds or len(set(settings.seeds)) < len(settings.seeds)):
        said = f"`seeds` must be different numbers, at least one; got {shown([*settings.seeds])}"
        source.add(("compare", "seeds"), said)
    if settings is not None and source.sound and not settings.arms:
        source.add(("compare",), "[compare] needs at least one [[compare.arms]]", "each has a `method` and a `label`")
    return settings


def _label(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    method = entry.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    label = entry.get("label", name)
    return label if isinstance(label, str) else None


def _is_matched(entry: Any) -> bool:
    method = entry.get("method") if isinstance(entry, dict) else None
    values = method.values() if isinstance(method, dict) else ()
    return any(isinstance(value, dict) and "matched_to" in value for value in values)


def _read_arm(
    source: Source, path: KeyPath, entry: Any, known: tuple[Step | None, Trained], labels: list[str]
) -> Arm | None:
    if not isinstance(entry, dict):
        source.add(path, f"an arm is a table with `method` and `label`; got {shown(entry)}")
        return None
    check_keys(source, path, entry, ("method", "label"))
    label = _label(entry)
    if "method" not in entry:
        source.add(path, "an arm needs a `method`", 'add method = { name = "teacher_forcing" }')
        return None
    method = read_method(source, (*path, "method"), entry["method"], *known, labels=labels)
    if "label" in entry and (label is None or not _LABEL.fullmatch(label) or visible(label) != label):
        said = f"`label` must be up to 100 characters, among them a letter or digit; got {shown(entry['label'])}"
        source.add((*path, "label"), said)
        return None
    return Arm(method, label) if method is not None and label is not None else None
