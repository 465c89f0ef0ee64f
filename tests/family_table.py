"""Every generating class of the installed transformers tried whole; writes the table of docs/families.md.

    python tests/family_table.py --out docs/families.md [--only NAME ...] [--mapping NAME] [--again]

Each class runs in a process of its own, under a time limit. What was found is kept in ``--state``, and a second call
goes on where the first one stopped.
"""

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

SECONDS = 240
"""Of one class; a tiny model needs some five."""

FOLDER = Path(__file__).parent
_TITLES = {
    "CAUSAL_LM": "Causal language models",
    "SEQ_TO_SEQ_CAUSAL_LM": "Sequence to sequence",
    "SPEECH_SEQ_2_SEQ": "Speech to text",
    "IMAGE_TEXT_TO_TEXT": "Images and text to text",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Try every generating class of the installed transformers.")
    parser.add_argument("--out", type=Path, help="the page that the table is written to")
    parser.add_argument("--state", type=Path, default=Path("families.jsonl"), help="what was found, a line a class")
    parser.add_argument("--mapping", choices=_TITLES, help="classes of one mapping alone")
    parser.add_argument("--only", nargs="*", default=[], help="these classes alone, and again")
    parser.add_argument("--backwards", action="store_true", help="from the last class on, beside another process")
    parser.add_argument("--again", action="store_true", help="also classes that were found to be other than right")
    arguments = parser.parse_args()
    from family_configs import classes

    known = read(arguments.state)
    found = list(classes().items())
    for name, (mapping, kind) in found[::-1] if arguments.backwards else found:
        if (arguments.only and name not in arguments.only) or arguments.mapping not in (None, mapping):
            continue
        old = known.get(name)
        if old and not arguments.only and not (arguments.again and old["verdict"] != "right"):
            continue
        known[name] = entry = apart(name, mapping, kind)
        with arguments.state.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{entry['verdict']:<13} {name} {entry['seconds']}s {entry['reason']} {entry['notes']}", flush=True)
    if arguments.out:
        arguments.out.write_text(page({name: known[name] for name in classes() if name in known}))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last entry of every class in a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def apart(name: str, mapping: str, kind: type[Any], seconds: int = SECONDS) -> dict[str, Any]:
    """The entry of a class, found in a process of its own."""
    from family_check import Entry, tried

    reader, writer = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(seconds)
        try:
            warnings.simplefilter("ignore")
            os.write(writer, json.dumps(asdict(tried(Entry(name, mapping), kind))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    lost = Entry(name, mapping, "our fault", reason=f"the process ended with status {status} and no result")
    return (json.loads(text) if text else asdict(lost)) | {"seconds": round(time.monotonic() - begun, 1)}


# -- the page


def page(entries: dict[str, dict[str, Any]]) -> str:
    """docs/families.md."""
    head = (FOLDER / "families_head.md").read_text()
    counts = Counter(entry["verdict"] for entry in entries.values())
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("right", "refused", "not runnable", "our fault"))
    tables = [_table(title, mapping, entries) for mapping, title in _TITLES.items()]
    made = f"{date.today()}, {versions}, {len(entries)} classes: **{numbers}**."
    return "\n".join([head.rstrip(), "", made, "", *tables])


def _table(title: str, mapping: str, entries: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"## {title}",
        "",
        "| class | verdict | engines; read beside ids | reason, remarks |",
        "| --- | --- | --- | --- |",
    ]
    for entry in entries.values():
        if entry["mapping"] == mapping:
            remarks = "; ".join([*([entry["reason"]] if entry["reason"] else []), *entry["notes"]])
            engines = ", ".join(entry["engines"]) if entry["verdict"] == "right" else ""
            media = entry["media"]
            if media in ("images", "sound"):
                engines += f"; {media}"
            elif media:
                remarks = "; ".join(filter(None, [remarks, media]))
            lines.append(f"| {entry['name']} | {entry['verdict']} | {engines} | {_cell(remarks)} |")
    return "\n".join([*lines, ""])


def _cell(text: str, most: int = 300) -> str:
    text = " ".join(text.split()).replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'")
    text = text.replace("*", "").replace("[", "(").replace("]", ")")
    return text if len(text) <= most else text[: most - 3].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    import transformers

    transformers.logging.set_verbosity_error()
    main()
