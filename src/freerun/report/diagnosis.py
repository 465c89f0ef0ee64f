"""diagnosis.html: what leaving gold costs one run; in the style of the comparison's report, and offline as it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from freerun.report import diagnosed_ids, diagnosed_values
from freerun.report.page import Raw, escape, paragraph


def write_diagnosis(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a diagnosis; its path."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(_page(found), encoding="utf-8")
    partial.replace(path)
    return path


def _page(found: Mapping[str, Any]) -> str:
    name = str(found["run"]["name"])
    style = (files("freerun.report") / "report.css").read_text(encoding="utf-8")
    part = diagnosed_values if found["diagnosis"]["kind"] == "values" else diagnosed_ids
    sections = "".join(
        f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in part.sections(found) if content
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: diagnosis</title><style>{style}</style></head><body><main>"
        f'<header><p class="kind">freerun diagnose</p><h1>{escape(name)}</h1>'
        f"{paragraph(part.summary(found['diagnosis']), 'verdict')}</header>{sections}"
        f"<section><h2>Run</h2>{_run(found)}</section></main></body></html>\n"
    )


def _run(found: Mapping[str, Any]) -> Raw:
    facts = {"data": found["data"]["name"], **found["run"]["facts"], **found["run"]["versions"]}
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_shown(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    return Raw(f"<dl>{entries}</dl><pre>{escape(str(found['run']['signature']))}</pre>")


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
