"""Damages the files of a run in every way and looks what the command makes of them.

No damage ends in exit 1 or a hang, none is read as if nothing were; what is refused is refused by name, and nothing in
the folder changes.
"""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import Count, Ended, Lives, changes, differing, fingerprints, tree

Damage = tuple[str, Callable[[Path], None]]
DEEP = 100_000
TEXTS = {
    "empty": b"", "list": b"[]", "word": b'"x"', "null": b"null", "number": b"3", "object": b"{}", "NaN": b"NaN",
    "1e999": b"1e999", "digits": b"9" * 5000, "brackets": b"[" * DEEP, "deep": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "nested": b'{"a":' * 200 + b"1" + b"}" * 200, "not UTF-8": b'{"a": "\xff"}', "zeros": bytes(64),
    "half a pair": b'{"a": "\\ud800"}', "20 MB": b" " * (20 * 2**20),
}  # fmt: skip
VALUES = (-1, 2**70, 10**400, 1e308, float("nan"), "x", "\ud800", "", None, True, [], {}, [[]])


def flipped(place: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 0x10
        path.write_bytes(content)

    return damage


def signed(path: Path, content: bytes) -> None:
    """Write a file as if it had been written so: its folder's manifest says the same."""
    path.write_bytes(content)
    manifest = path.with_name("manifest.json")
    if manifest.exists() and path != manifest:
        entries = json.loads(manifest.read_bytes())
        entries["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps(entries))


def linked(path: Path) -> None:
    """In its place a link to the same content elsewhere."""
    elsewhere = path.parent.parent.with_name(f"elsewhere-{path.name}")
    if elsewhere.is_dir():
        shutil.rmtree(elsewhere)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path) -> None:
    """Three gigabytes, as declared."""
    os.truncate(path, 3 * 2**30)
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_bytes())
    entries["files"][path.name]["bytes"] = 3 * 2**30
    manifest.write_text(json.dumps(entries))


def plain(path: Path, every: int) -> Iterator[Damage]:
    """What any file can suffer."""
    size = path.stat().st_size
    yield "removed", removed
    yield "emptied", lambda p: p.write_bytes(b"")
    yield "halved", lambda p: os.truncate(p, size // 2)
    yield "one byte short", lambda p: os.truncate(p, max(0, size - 1))
    yield "longer", lambda p: p.write_bytes(p.read_bytes() + b"\n{")
    yield "a link", linked
    yield "a folder", folder_instead
    yield "a pipe", pipe_instead
    for place in range(0, size, every):
        yield f"byte {place} changed", flipped(place)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value[:2]):
            yield from leaves(part, (*at, name))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(copy[at[0]], at[1:], new)
    return copy


def hostile(path: Path) -> Iterator[Damage]:
    """Other JSON, with a manifest that fits it; every value of it in turn replaced or left out."""
    for name, text in TEXTS.items():
        yield f"{name}, signed", lambda p, text=text: signed(p, text)
    content = json.loads(path.read_bytes())
    for at in leaves(content):
        for new in VALUES if at else ():
            text = json.dumps(replaced(content, at, new)).encode()
            yield f"{'.'.join(map(str, at))} = {str(new)[:20]!r}, signed", lambda p, text=text: signed(p, text)
    for name in content if isinstance(content, dict) else ():
        text = json.dumps({other: part for other, part in content.items() if other != name}).encode()
        yield f"without {name}, signed", lambda p, text=text: signed(p, text)


def cases(folder: Path, every: int, *, checkpoints: bool) -> Iterator[tuple[Path, str, Callable[[Path], None]]]:
    """File or folder, what is done to it and how; those of checkpoints only where they are read."""
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if place.name == "lock" or (place.parts[0] == "checkpoints" and not checkpoints):
            continue
        if path.is_dir():
            yield from ((place, name, damage) for name, damage in (("removed", removed), ("a link", linked)))
            continue
        yield from ((place, *damage) for damage in plain(path, every))
        if path.suffix == ".json":
            yield from ((place, *damage) for damage in hostile(path))
        if path.suffix == ".safetensors" and path.with_name("manifest.json").exists():
            yield place, "sparse", sparse


@dataclass(frozen=True)
class Reader:
    """A command that reads a run's folder.

    Args:
        source: the run, undamaged.
        words: the command on a folder.
        result: what it gives, from the folder and what it printed.
    """

    source: Path
    words: Callable[[Path], list[Any]]
    result: Callable[[Path, str], Any]


def printed(_folder: Path, text: str) -> str:
    return text


def readers(lives: Lives) -> dict[str, Reader]:
    """An unfinished run that is gone on with, and a finished one that is read in every way there is."""
    begun, done, recipe = lives.new("begun"), lives.new("done"), lives.recipe()
    lives.train(done)
    lives.train(begun, event=len(lives.events()) * 4 // 5)
    (words := lives.root / "words.txt").write_text("abc\nfed\n")

    def train(*flags: Any) -> Callable[[Path], list[Any]]:
        return lambda run: ["train", recipe, *flags, "--out", run]

    return {
        "resume": Reader(begun, train("--resume"), lambda run, _: fingerprints(run)),
        "resume of a finished run": Reader(done, train("--resume"), printed),
        "init": Reader(
            done, lambda run: ["train", recipe, "--out", run.with_name("warm"), "--init", run],
            lambda run, _: fingerprints(run.with_name("warm")),
        ),
        "evaluate": Reader(done, lambda run: ["evaluate", run], printed),
        "generate": Reader(done, lambda run: ["generate", run, "--input", words], printed),
        "diagnose": Reader(done, lambda run: ["diagnose", run, "--out", run.with_name("found")], printed),
        "check": Reader(done, lambda run: ["check", run], printed),
    }  # fmt: skip


def damages(lives: Lives, number: int, seed: int, every: int = 997) -> Count:
    """So many of all damages of all files, under every command that reads them."""
    count = Count("a damaged file")
    commands = readers(lives)
    every_case = [
        (name, *case)
        for name, reader in commands.items()
        for case in cases(reader.source, every, checkpoints=name == "resume")
    ]
    count.facts["cases there are"] = len(every_case)
    chosen = every_case if number >= len(every_case) else random.Random(seed).sample(every_case, number)
    right: dict[str, Any] = {}
    memory: dict[str, int] = {}
    for name, place, what, damage in chosen:
        reader = commands[name]
        if name not in right:
            _, ended, right[name] = ran(lives, reader)
            memory[name] = ended.memory // 1024
            assert ended.code == 0, ended.text
        before, ended, found = ran(lives, reader, damage, place)
        examine(count, (before, ended, found), right[name], f"{name}, {place}, {what}", place)
        more = ended.memory // 1024 - memory[name]
        count.check(more < 100, f"{name}, {place}, {what}: {more} MB more than undamaged")
        count.facts["most memory more, MB"] = max(more, count.facts.get("most memory more, MB", 0))
    return count


def ran(
    lives: Lives, reader: Reader, damage: Callable[[Path], None] = lambda _: None, place: Path = Path()
) -> tuple[Any, Ended, Any]:
    """What was there, how the command ended, and what it gave (None where it refused, or where that cannot be read)."""
    root = lives.root / "case"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(reader.source, folder := root / "run")
    damage(folder / place)
    before = tree(root)
    ended = lives.live(*reader.words(folder), folder=folder, limit=30)
    if ended.code:
        # what a run that was killed left half done may go
        changed = [name for name in changes(before, tree(root)) if not re.search(r"/lock$|/\.writing-|/found$", name)]
        return changed, ended, None
    try:
        return [], ended, reader.result(folder, ended.text.replace(str(root), ""))
    except ValueError:
        return [], ended, None


def examine(count: Count, how: tuple[list[str], Ended, Any], right: Any, where: str, place: Path) -> None:
    """Refused by name and nothing changed, or the same as if nothing had been damaged."""
    changed, ended, found = how
    count.tried += 1
    if ended.code == 0:
        # what is signed anew and can be true is believed; a link is stepped over where another checkpoint is whole
        if where.endswith(("signed", "a link")):
            same = True
        elif found is None:
            same = place.name == "metrics.jsonl"  # text, which nobody reads again
        elif isinstance(right, str):
            same = found == right
        else:
            same = not differing({**found, str(place): 0}, {**right, str(place): 0})
        count.check(same, f"{where}: exit 0 and other results: {ended.text[-300:]}")
        return
    ending = f"{where}: exit {ended.codes}{', hung' if ended.hung else ''}: {ended.text[-400:]}"
    if count.check(ended.code in (2, 3, 4) and not ended.hung, ending):
        count.check(
            place.name in ended.text or place.parent.name in ended.text or "symbol" in ended.text,
            f"{where}: not named: {ended.text[-300:]}",
        )
        # a link in place of what a run writes later is found when it comes to write there
        count.check(not changed or where.endswith("a link"), f"{where}: refused, and changed {changed}")


THEIRS = (
    "notes.txt", ".writing-mine", ".probe-mine", "model/notes.txt", "tensorboard/mine", "checkpoints/best-notes.txt",
    "checkpoints/step-00000006-keep/model.safetensors", "checkpoints/best-of-mine/x", "checkpoints/step-1/x",
    "checkpoints/step-000000001/x", "checkpoints/.writing-mine/x", "checkpoints/step-00000002/x",
    "checkpoints/step-*/x", "checkpoints/best-*/x",
)  # fmt: skip
LINKS = ("checkpoints/step-00000001", "checkpoints/best-00000001", "checkpoints/step-00000099")


def users_files(lives: Lives) -> Count:
    """What a user keeps in a run's folder is there when the run has gone on, was begun again, and when it ended."""
    count = Count("files of the user in a run's folder")
    whole = lives.whole()
    for flags, at in (("--resume", 2), ("--resume", 6), ("--overwrite", 2)):
        folder, outside = lives.new("run"), lives.new("outside")
        lives.train(folder, event=len(lives.events()) * at // 8)
        steps = {
            "step-*": sorted((folder / "checkpoints").glob("step-*")),
            "best-*": sorted((folder / "checkpoints").glob("best-*")),
        }
        outside.mkdir()
        (outside / "x").write_text("theirs")
        for name in THEIRS:
            place = Path(name)
            if place.parent.name in steps:  # inside of what will be pruned
                place = steps[place.parent.name][0].relative_to(folder) / place.name
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text("theirs")
        for name in LINKS:
            (folder / name).symlink_to(outside)
        mine = [
            path
            for path in folder.rglob("*")
            if path.is_symlink() or (path.is_file() and path.read_bytes() == b"theirs")
        ]
        ended = lives.train(folder, flags)
        count.tried += len(mine)
        where = f"{flags} after {at}/8 of a run"
        gone = [str(path.relative_to(folder)) for path in mine if not path.exists()]
        count.check(not gone, f"{where}: exit {ended.code}, gone are {gone}: {ended.text[-300:]}")
        count.check((outside / "x").read_text() == "theirs", f"{where}: what a link leads to was changed")
        if flags == "--overwrite" and ended.code == 3:
            continue  # refused by name
        if count.check(ended.code == 0, f"{where}: exit {ended.code}: {ended.text[-500:]}"):
            left = {str(path.relative_to(folder)) for path in folder.rglob("*")} - whole.keys()
            found = {name: content for name, content in fingerprints(folder).items() if name in whole}
            count.check(not differing(found, whole), f"{where}: other bits: {differing(found, whole)}; left {left}")
    return count


def links(lives: Lives, every: int = 1) -> Count:
    """At every name that a run writes stands a link to a file of the user: it keeps its bytes."""
    count = Count("a link in place of a file")
    events, theirs = lives.events(), lives.root / "theirs"
    names: dict[str, int] = {}
    for number, (event, then) in enumerate(itertools.pairwise(events), 1):
        kind, _, place = event.partition(" ")
        if kind == "open" and then.startswith(("write", "truncate", "fcntl", "pwrite", "fsync")) and place != ".":
            names.setdefault(place, number)
    for place, number in list(names.items())[::every]:
        for target in (theirs, lives.root / "nowhere"):
            folder = lives.new("linked")
            theirs.write_text("theirs")
            (lives.root / "nowhere").unlink(missing_ok=True)
            lives.train(folder, event=number)
            if (folder / place).is_dir():
                shutil.rmtree(folder / place)
            (folder / place).unlink(missing_ok=True)
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).symlink_to(target)
            ended, where = lives.train(folder, "--resume", limit=30), f"{place} is a link, event {number}"
            count.tried += 1
            count.check(
                theirs.read_text() == "theirs" and not (lives.root / "nowhere").exists(), f"{where}: written through"
            )
            count.check(ended.code in (0, 3, 4), f"{where}: exit {ended.code}: {ended.text[-300:]}")
            if ended.code == 0:
                found = {**fingerprints(folder), place: 0}
                right = {**lives.whole(), place: 0}
                count.check(not differing(found, right), f"{where}: other bits: {differing(found, right)}")
            shutil.rmtree(folder)
    return count
