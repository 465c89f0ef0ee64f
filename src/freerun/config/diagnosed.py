"""What ``freerun diagnose`` measures of a run: batches of its test split, and what is known of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freerun.config.load import LoadedRun, own_data, run_summary
from freerun.errors import UserError

if TYPE_CHECKING:
    from freerun.diagnostics import About
    from freerun.types import Batch

__all__ = ["diagnose_run"]

_SIZE = 128
_LONGEST = 4000


@dataclass(frozen=True, eq=False)
class _Asked:
    name: str
    counted: str
    batches: list[Batch]
    about: About


def diagnose_run(
    run: LoadedRun,
    windows: int | None = None,
    watch: Callable[[str], None] | None = None,
    before: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Diagnose a run's model on its own test split; the content of diagnosis.json.

    Args:
        run: from ``load_run``.
        windows: test windows, words or sentences that are used, at even distances; None: all.
        watch: told what is being done, in words.
        before: called when run and data are in order, before anything is measured.

    Raises:
        UserError: the run was trained on a text, whose free run has no gold to be compared with place by place.
        CheckpointError: the run's own data have changed since.
    """
    from freerun.diagnostics import as_json, diagnose
    from freerun.training.run import versions

    if windows is not None and windows < 1:
        raise UserError(f"--windows must be at least 1; got {windows}")
    kind = str(run.coder.describe().get("kind"))
    if kind not in _ASK:
        raise UserError(
            f"{run.folder}: a run on a {kind} cannot be diagnosed: what its model says by itself has no gold to be "
            "compared with place by place\n"
            f"  help: freerun evaluate {run.folder} shows its scores told gold and running freely; "
            f"{', '.join(_ASK)} can be diagnosed"
        )
    if watch:
        watch("loading the data")
    asked = _ASK[kind](run, own_data(run), windows)
    if before:
        before()
    found = diagnose(run.model, asked.batches, asked.about, watch=watch)
    summary = run_summary(run)
    signature = summary.get("signature") or "the run is not finished"
    facts = {"method": summary.get("method"), "seed": summary.get("seed"), "best after": _best(summary)}
    return {
        "schema": 1,
        "run": {
            "name": run.folder.resolve().name,
            "signature": signature,
            "facts": facts | {"parameters": summary.get("parameters")},
            "versions": versions(),
        },
        "data": {"name": asked.name, "counted": asked.counted, "fingerprint": summary.get("data")},
        "diagnosis": as_json(found),
    }


def _best(summary: Mapping[str, Any]) -> str | None:
    best = summary.get("best") or {}
    return None if best.get("step") is None else f"{best['step']:,} updates"


def _series(run: LoadedRun, data: Any, windows: int | None) -> _Asked:
    from freerun.diagnostics import About
    from freerun.training.forecast_scores import draw_for
    from freerun.training.forecasting import ForecastTask

    chosen = _spread(data.windows("test"), windows)
    linear = ForecastTask(data).linear
    about = About(
        exponent=data.exponent,
        period=data.period,
        threshold=run.evaluate.threshold,
        names=tuple(data.names),
        scale=(data.mean, data.std),
        naive={"linear": lambda past, horizon: linear(past.double(), horizon)},
        long=data.free("test")[:_LONGEST],
        draw=draw_for(run.model, run.evaluate.draw),
    )
    batches = [data.window_batch("test", part) for part in _parts(chosen)]
    return _Asked(f"{data.name}, test part", "windows", batches, about)


def _pairs(run: LoadedRun, data: Any, windows: int | None) -> _Asked:
    from freerun.diagnostics import About

    pairs = data.evaluation("test")
    chosen = _spread(len(pairs), windows)
    # of words with several pronunciations the first
    batches = [
        run.coder.pair_batch([pairs.sources[n] for n in part], [pairs.references[n][0] for n in part])
        for part in _parts(chosen)
    ]
    return _Asked(f"{pairs.origin}", "words", batches, About(end=0))


def _parallel(run: LoadedRun, data: Any, windows: int | None) -> _Asked:
    from freerun.diagnostics import About

    sentences = data.evaluation("test")
    chosen = _spread(len(sentences.sources), windows)
    # sentences of like length in one batch
    chosen = sorted(chosen, key=lambda n: len(sentences.targets[n].split()))
    batches = [
        run.coder.pair_batch([sentences.sources[n] for n in part], [sentences.targets[n] for n in part])
        for part in _parts(chosen)
    ]
    return _Asked(f"{sentences.origin}", "sentences", batches, About(end=0))


def _records(run: LoadedRun, data: Any, windows: int | None) -> _Asked:
    from freerun.diagnostics import About

    _, encoded = data.evaluation("test", windows)
    # records of like length in one batch
    encoded = sorted(encoded, key=len)
    limit: int | None = run.coder.model.limit
    tight = data.coder.causal and limit is not None and sum(data.longest) > limit
    # rows of a batch go on for the longest answer, for which a long prompt may leave no positions
    size = 1 if tight else run.evaluate.batch_size
    parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    batches = [run.coder.answer_batch(part) for part in parts]
    return _Asked(f"{data.name}, test", "records", batches, About(end=run.coder.end))


_ASK: dict[str, Callable[[LoadedRun, Any, int | None], _Asked]] = {
    "series": _series,
    "pairs": _pairs,
    "parallel": _parallel,
    "records": _records,
}


def _spread(count: int, most: int | None) -> list[int]:
    kept = count if most is None else min(count, most)
    return [number * count // kept for number in range(kept)]


def _parts(chosen: list[int]) -> list[list[int]]:
    return [chosen[start : start + _SIZE] for start in range(0, len(chosen), _SIZE)]
