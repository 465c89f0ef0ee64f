"""A made-up language of a few words and its word-for-word translation, as files."""

from pathlib import Path

WORDS = {
    "a": "ein", "man": "mann", "woman": "frau", "dog": "hund", "runs": "läuft", "sleeps": "schläft", "big": "großer",
    "two": "zwei", "and": "und", "sees": "sieht",
}  # fmt: skip
_SUBJECTS = ("man", "woman", "dog", "big dog", "big man", "big woman")


def _pairs() -> list[tuple[str, str]]:
    sources = [f"a {subject} {verb} ." for subject in _SUBJECTS for verb in ("runs", "sleeps")]
    sources += [f"a {one} sees a {other} ." for one in _SUBJECTS for other in _SUBJECTS if one != other]
    return [(source, " ".join(WORDS.get(word, word) for word in source.split())) for source in sources]


PAIRS = _pairs()


def write_parallel(folder: Path, names: dict[str, str] | None = None, **splits: list[tuple[str, str]]) -> Path:
    """Files of train, dev and test in a folder; the others are of ``PAIRS``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train": PAIRS[8:], "dev": PAIRS[4:8], "test": PAIRS[:4]} | splits
    for split, pairs in files.items():
        for side, end in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{(names or {}).get(split, split)}.{end}").write_text(text, encoding="utf-8")
    return folder
