"""What evaluate, diagnose and compare return: they print as tables, and are saved as pages or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from freerun.comparison.plan import MARKER
from freerun.diagnostics.results import Diagnosis as Measured
from freerun.diagnostics.results import IdDiagnosis, IdSide, as_json
from freerun.errors import OccupiedError, UserError
from freerun.metrics.table import BATCHES_OF_IDS, BATCHES_OF_VALUES
from freerun.tasks.base import Evaluation as Scores

_SIDES = ("teacher_forced", "free_running")


class _Result:
    """What the results have in common: they print as a table, and are saved as a page or as JSON."""

    _kind: ClassVar[str]

    def rows(self) -> list[dict[str, Any]]:
        """The numbers, a row each."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        raise NotImplementedError

    def to_frame(self) -> Any:
        """The rows as a Polars or pandas data frame, whichever is installed; else a list of dicts."""
        for name in ("polars", "pandas"):
            try:
                return __import__(name).DataFrame(self.rows())
            except ImportError:
                continue
        return self.rows()

    def save(self, path: str | Path) -> Path:
        """Write a page (``.html``) or JSON (``.json``); return the path. Folders are made where they are missing.

        Raises:
            UserError: another ending; a file that ``save`` did not write, or no permission.
        """
        if not isinstance(path, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(f"path must be a path that ends in .html or .json; got {type(path).__name__}")
        path = Path(path)
        if path.suffix not in (".html", ".json"):
            raise UserError(f"{path}: save as .html (a page) or .json; got {path.suffix or 'no ending'}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._refuse_other(path)
            if path.suffix == ".html":
                self._write_page(path)
            else:
                partial = path.with_name(f"{path.name}.part")
                partial.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
                partial.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
        return path

    def _refuse_other(self, path: Path) -> None:
        """Refuse to replace what is no result of freerun, or a result of another kind or of another comparison."""
        kind = _kind_of(path)
        if kind is None:
            raise OccupiedError(f"{path} is there already, and no result of freerun: save under another name")
        folder: Any = getattr(self, "folder", None)
        inside = path.name in ("results.json", "report.html") and (path.parent / MARKER).exists()
        if kind != self._kind or (inside and (folder is None or folder.resolve() != path.parent.resolve())):
            what = "another comparison's" if kind == self._kind else f"{_ARTICLES[kind]}'s"
            raise OccupiedError(f"{path} is {what}, and would be replaced: save under another name")

    def _write_page(self, path: Path) -> None:
        raise NotImplementedError

    def __str__(self) -> str:
        return text_table(self.rows())

    def _repr_html_(self) -> str:
        from freerun.report.page import table

        rows = self.rows()
        heads = [name.replace("_", " ") for name in rows[0]]
        return table(heads, [[_cell(value) for value in row.values()] for row in rows], "numbers")


_ARTICLES = {"evaluate": "an evaluation", "diagnose": "a diagnosis", "compare": "a comparison"}


def _kind_of(path: Path) -> str | None:
    """What wrote a file: "evaluate", "diagnose" or "compare"; None: something else."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if path.suffix == ".html":
        found = re.search(rb'<p class="kind">freerun (evaluate|diagnose|compare)<', content)
        return found[1].decode() if found else None
    try:
        held: Any = json.loads(content)
    except ValueError:
        return None
    if not isinstance(held, dict) or "schema" not in held:
        return None
    keys = {"comparisons": "compare", "diagnosis": "diagnose", _SIDES[0]: "evaluate"}
    return next((kind for key, kind in keys.items() if key in held), None)


def _cell(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in columns, numbers to the right.

    >>> print(text_table([{"score": "loss", "value": 0.51234}]))
    score   value
    loss   0.5123
    """
    heads = [name.replace("_", " ") for name in rows[0]]
    cells = [[_cell(value) for value in row.values()] for row in rows]
    numeric = [any(isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    widths = [max(len(head), *(len(row[n]) for row in cells)) for n, head in enumerate(heads)]

    def line(texts: Sequence[str]) -> str:
        columns = zip(texts, widths, numeric, strict=True)
        return "  ".join(f"{t:>{w}}" if right else f"{t:<{w}}" for t, w, right in columns).rstrip()

    return "\n".join(line(texts) for texts in (heads, *cells))


@dataclass(frozen=True, repr=False)
class Evaluation(Scores, _Result):
    """Scores of a model on gold history and running freely, and of every row.

    Args:
        teacher_forced: score -> value on gold history.
        free_running: score -> value on the model's own.
        items: one record per row.
        curves: of values, the median error by lead time on both sides.
    """

    _kind: ClassVar[str] = "evaluate"
    values: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """A row a score."""
        report = BATCHES_OF_VALUES if self.values else BATCHES_OF_IDS
        names = dict.fromkeys([*self.free_running, *self.teacher_forced])
        known = {each.score: each for each in report.metrics}
        known |= {f"{prefix}{score}": each for _, prefix in report.baselines for score, each in tuple(known.items())}
        return [
            {
                "score": name.replace("_", " "),
                "free_running": self.free_running.get(name),
                "teacher_forced": self.teacher_forced.get(name),
                "unit": known[name].sign.strip() or known[name].units if name in known else "",
            }
            for name in names
        ]

    def to_json(self) -> dict[str, Any]:
        """Both sides, and the rows."""
        from freerun.training.log import jsonable

        curves = {name: list(curve) for name, curve in self.curves.items()}
        sides = {side: dict(getattr(self, side)) for side in _SIDES}
        return cast(dict[str, Any], jsonable({"schema": 1, **sides, "curves": curves, "items": self.items}))

    def _write_page(self, path: Path) -> None:
        from freerun.report.page import notes, table, write_page

        rows = [[_cell(value) for value in row.values()] for row in self.rows()]
        report = BATCHES_OF_VALUES if self.values else BATCHES_OF_IDS
        scores = table(["score", "free-running", "teacher-forced", "unit"], rows, "numbers") + notes(
            report.notes_of([f"free_running.{name}" for name in self.free_running])
        )
        write_page(path, "evaluate", "your model", f"{len(self.items):,} rows.", [("Scores", scores)])

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Diagnosis(_Result):
    """Exposure bias of a model, measured; ``result`` holds the numbers (``freerun.diagnostics``).

    Args:
        result: the numbers.
        model: its name.
        facts: of model and data, for people.
        data: the data's name.
        item_noun: what its rows are.
        fingerprint: of the data.
    """

    _kind: ClassVar[str] = "diagnose"
    result: Measured
    model: str = "model"
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: str = "batches of one's own"
    item_noun: str = ""
    fingerprint: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """A row a number."""
        found = self.result
        if isinstance(found, IdDiagnosis) and found.free_running is None:
            tokens = found.tokens
            own = tokens.sampled
            return [
                {"measure": "loss, nats a position", **_both(tokens.loss.value, None)},
                {"measure": "entropy, nats (free-running: sampled)", **_both(tokens.entropy.value, own.entropy.value)},
                {
                    "measure": "repeated 4-grams, % (gold; sampled)",
                    **_both(*map(_percent, (tokens.repetition.value, own.repetition.value))),
                },
            ]
        if isinstance(found, IdDiagnosis) and found.free_running is not None:
            return _id_rows(found, found.free_running)
        sides = [getattr(found, side) for side in _SIDES]
        return [
            {"measure": "NRMSE, median of windows", **_both(*(side.nrmse.median for side in sides))},
            {"measure": "NRMSE of the last tenth", **_both(*(side.nrmse_last_tenth.median for side in sides))},
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of diagnosis.json."""
        from freerun.training.run import versions

        item_noun = self.item_noun or ("rows" if self.result.kind == "ids" else "windows")
        facts = dict(self.facts)
        run = {"name": self.model, "signature": "not trained by freerun", "facts": facts, "versions": versions()}
        data = {"name": self.data, "item_noun": item_noun, "fingerprint": self.fingerprint}
        return {"schema": 1, "run": run, "data": data, "diagnosis": as_json(self.result)}

    def _write_page(self, path: Path) -> None:
        from freerun.report.diagnosis import write_diagnosis

        write_diagnosis(self.to_json(), path)

    def _repr_html_(self) -> str:
        from freerun.report.diagnosis import summary
        from freerun.report.page import paragraph

        return paragraph(summary(as_json(self.result))) + super()._repr_html_()

    def __str__(self) -> str:
        from freerun.report.diagnosis import summary

        return f"{super().__str__()}\n{summary(as_json(self.result))}"

    __repr__ = __str__


def _id_rows(found: IdDiagnosis, free_running: IdSide) -> list[dict[str, Any]]:
    from freerun.report.diagnosis import position_ranges

    sides = found.teacher_forced, free_running
    after = [side.after for side in sides]
    return [
        {"measure": f"wrong, of {sum(found.left):,} entries", **_both(*(side.errors for side in sides))},
        {"measure": "wrong, %", **_both(*(100 * side.wrong for side in sides))},
        *(
            {"measure": f"  at {name}, of {entries:,}, %", **_both(*(100 * share for share in shares))}
            for name, entries, shares in position_ranges(as_json(found))
        ),
        {"measure": "wrong after a wrong one, %", **_both(*(_percent(each.after_error) for each in after))},
        {"measure": "  of", **_both(*(each.wrong for each in after))},
        {"measure": "wrong after a right one, %", **_both(*(_percent(each.after_correct) for each in after))},
        {"measure": "  of", **_both(*(each.right for each in after))},
    ]


def _both(teacher_forced: float | None, free_running: float | None) -> dict[str, float | None]:
    return {"free_running": free_running, "teacher_forced": teacher_forced}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(_Result):
    """Arms with seeds, and what their scores say; ``results`` is the content of results.json.

    Args:
        results: scores, paired differences and the verdict.
        folder: where the runs are; a temporary one goes with the object.
    """

    _kind: ClassVar[str] = "compare"
    results: Mapping[str, Any]
    folder: Path

    @property
    def verdict(self) -> str:
        """The verdict, in a sentence."""
        return str(self.results["verdict"]["sentence"])

    def rows(self) -> list[dict[str, Any]]:
        """A row an arm and a score, with its 95 % interval."""
        return [dict(line) for line in self.results["summary"]]

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return dict(self.results)

    def _write_page(self, path: Path) -> None:
        from freerun.report.comparison import write

        path.write_bytes(write(self.folder).read_bytes())

    def _repr_html_(self) -> str:
        from freerun.report.comparison import notebook

        return notebook(self.results)

    def __str__(self) -> str:
        import io

        from rich.console import Console

        from freerun.comparison.verdict import table

        stream = io.StringIO()
        Console(file=stream, width=100, color_system=None, force_jupyter=False).print(table(self.results, 100))
        return f"{stream.getvalue().rstrip()}\n{self.verdict}"

    __repr__ = __str__
