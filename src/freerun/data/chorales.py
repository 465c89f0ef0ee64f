"""Bach's chorales as labelled sequences: the bass under the soprano, in sixteenths, from the package music21."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from xml.etree import ElementTree

from freerun.data.files import SPLITS
from freerun.data.symbols import LabelCodec, LabelData
from freerun.errors import NotInstalledError, UserError

VOICES = ["Soprano", "Alto", "Tenor", "Bass"]
REST = "r"
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_HELP = "pip install 'freerun[music]'"


@lru_cache(2)
def load_chorales(length: int = 64) -> LabelData:
    """The soprano of Bach's four-part chorales as what is observed, and the bass as labels, a symbol a sixteenth.

    A symbol is the MIDI number of the note that sounds, or ``r`` in a rest; a held note looks like a repeated one.
    Chorales belong to dev (10 %), test (10 %) or train by the hash of their file's name; they are cut into pieces of
    ``length`` sixteenths, whose rest at the end is a piece of its own. Notes that stand in no training piece are ``r``
    in the soprano; a piece with one in the bass is left out.

    The package's code is not imported: the scores in it are read as they are. The code is under the BSD licence; the
    scores are in it by permission of those who encoded them, and some encodings may not be used commercially
    (``music21/corpus/license.txt``).

    Args:
        length: sixteenths of a piece.

    Raises:
        UserError: the package is not installed, or has no scores.
    """
    folder, version = _scores()
    pieces: dict[str, list[tuple[list[str], list[str]]]] = {split: [] for split in SPLITS}
    chorales = 0
    for path in sorted(folder.glob("*.mxl")):
        voices = read_score(path)
        if voices is None:
            continue
        chorales += 1
        soprano, bass = voices
        for start in range(0, min(len(soprano), len(bass)), length):
            piece = soprano[start : start + length], bass[start : start + length]
            pieces[_split_of(path.stem)].append(piece)
    if not pieces["train"]:
        raise UserError(f"{folder}: music21 {version} has no four-part chorales there: {_HELP}")
    sides = [sorted({symbol for piece in pieces["train"] for symbol in piece[side]} | {REST}) for side in (0, 1)]
    codec = LabelCodec(tuple(sides[0]), tuple(sides[1]))
    known = {split: [piece for piece in each if set(piece[1]) <= set(codec.target)] for split, each in pieces.items()}
    unknown = sum(len(pieces[split]) - len(known[split]) for split in SPLITS)
    splits = {
        split: [
            (codec.ids("source", [x if x in codec.source else REST for x in soprano], split),
             codec.ids("target", bass, split))
            for soprano, bass in each
        ]
        for split, each in known.items()
    }  # fmt: skip
    notes = (
        f"{chorales} chorales in pieces of {length} sixteenths; left out for a bass note not in training: {unknown}",
    )
    return LabelData(splits, codec, f"Bach's chorales of music21 {version}: bass under soprano", notes)


def _split_of(name: str) -> str:
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % 10
    return {8: "dev", 9: "test"}.get(number, "train")


def _scores() -> tuple[Path, str]:
    try:
        package = distribution("music21")
    except PackageNotFoundError:
        raise NotInstalledError(f"data of kind chorales needs music21: {_HELP}") from None
    folder = Path(str(package.locate_file("music21/corpus/bach")))
    if not folder.is_dir():
        raise UserError(f"{folder}: music21 {package.version} has no scores of Bach there; expected version 9: {_HELP}")
    return folder, package.version


def read_score(path: Path) -> tuple[list[str], list[str]] | None:
    """Return soprano and bass of a compressed MusicXML score by sixteenths; None if it is not in four parts."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("xml") and not name.startswith("META-INF")]
            score = ElementTree.fromstring(archive.read(names[0]))
    except (zipfile.BadZipFile, ElementTree.ParseError, IndexError, OSError) as error:
        raise UserError(f"{path}: is no compressed MusicXML: {error}") from None
    parts = [(part.findtext("part-name") or "").strip() for part in score.findall("part-list/score-part")]
    if parts != VOICES:
        return None
    voices = score.findall("part")
    return _sixteenths(voices[0], highest=True), _sixteenths(voices[3], highest=False)


def _sixteenths(part: ElementTree.Element, *, highest: bool) -> list[str]:
    """What sounds at the beginning of each sixteenth: of several notes the highest, or the lowest."""
    found: list[list[int]] = []
    for onset, end, pitch in _notes(part):
        # from the first sixteenth that begins at the onset or later
        first, last = -int(-onset // 1), -int(-end // 1)
        found.extend([] for _ in range(last - len(found)))
        for sounding in found[first:last]:
            sounding.extend([] if pitch is None else [pitch])
    choose = max if highest else min
    return [str(choose(sounding)) if sounding else REST for sounding in found]


def _notes(part: ElementTree.Element) -> Iterator[tuple[float, float, int | None]]:
    """Beginning and end of each note, in sixteenths, and its MIDI number; None for a rest."""
    now = begun = 0.0
    unit = 1.0
    for element in (element for measure in part.findall("measure") for element in measure):
        if divisions := element.findtext("divisions"):
            unit = 4 / int(divisions)
        # to whole 1/64 sixteenths, so that triplets end where the beat does
        duration = round(64 * unit * float(element.findtext("duration") or 0)) / 64
        if element.tag in ("backup", "forward"):
            now += -duration if element.tag == "backup" else duration
        elif element.tag == "note" and element.find("grace") is None:
            begun = begun if element.find("chord") is not None else now
            yield begun, begun + duration, _pitch(element)
            now = begun + duration


def _pitch(note: ElementTree.Element) -> int | None:
    pitch = note.find("pitch")
    if pitch is None:
        return None
    step, octave, alter = (pitch.findtext(name) for name in ("step", "octave", "alter"))
    return 12 * (int(octave or 0) + 1) + _STEPS[str(step)] + round(float(alter or 0))
