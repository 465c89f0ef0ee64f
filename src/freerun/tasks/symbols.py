"""Symbols position by position as two kinds of task: a series quantised to levels, and labels of what is observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from freerun.arguments import Arguments, above, at_least, between, brief
from freerun.batch import Batch
from freerun.data.chorales import load_chorales
from freerun.data.files import LONGEST, SPLITS, DataFile, first_problems, read_lines
from freerun.data.series.inference import forecast_table, read_futures, read_windows
from freerun.data.symbols import LabelCodec, LabelData, LevelCodec, LevelData, Pair
from freerun.data.worlds import Observed, StickyRing, random_automaton
from freerun.diagnostics import DiagnosisOptions
from freerun.diagnostics.naive import NGram, fit_ngram
from freerun.errors import UserError, collected, refuse
from freerun.generation import generate
from freerun.keys import bits, fold, uniform
from freerun.metrics.table import LABELS, LEVELS, TaskReport
from freerun.rollin.model import eval_mode
from freerun.tasks.base import DataTask, DiagnosisInput, Evaluation, Examples, model_device, parts
from freerun.types import evenly

_ORDERS = range(2, 9)
"""Lengths of the n-grams that are tried on dev."""


@dataclass(frozen=True)
class SymbolSettings(Arguments):
    """How models are scored, on dev while training and on test at the end; they run greedily.

    Args:
        batch_size: rows at a time; changes no number.
    """

    batch_size: int = at_least(1, 256, semantic=False)


@dataclass(frozen=True)
class LevelSettings(SymbolSettings):
    """How models of levels are scored, on dev while training and on test at the end; they run greedily.

    Args:
        length: levels that ``freerun generate`` forecasts after a table's newest row; None: ``data.horizon``.
    """

    length: int | None = at_least(1, None, semantic=False)


Naive = Callable[[Tensor, int], Tensor]
"""From (rows, length) source symbols and a number of positions to (rows, positions) outputs."""


@dataclass(frozen=True)
class Rows:
    """Rows to score on: how many, their batch by number, whether levels are near each other, what needs no model; and
    names of observed and of output symbols, for items (none: their numbers)."""

    count: int
    make: Callable[[list[int]], Batch]
    ordered: bool
    naive: Mapping[str, Naive]
    names: tuple[Sequence[str], Sequence[str]] | None = None
    __repr__ = brief


@dataclass(frozen=True)
class RingSection(StickyRing):
    """A walk on a ring, labelled while it is observed with errors: ``freerun.data.worlds.StickyRing``.

    Args:
        length: labels of a walk.
        walks: numbers of training, dev and test walks.
        seed: of the walks; the recipe's own seed does not change the data.
    """

    kind: Literal["ring"] = "ring"
    length: int = between(2, 10_000, 60)
    walks: tuple[int, ...] = between(1, 10**6, (2048, 256, 512))
    seed: int = between(0, 2**63 - 1, 0)

    def problems(self) -> Iterable[str]:
        """Return which fields do not go together."""
        yield from _three(self)

    def load_symbols(self) -> LabelData:
        """The walks, with their law."""
        name = f"ring of {self.states} states, stay {self.stay:g}, right {self.right:g}, seed {self.seed}"
        return _walks(self, name)


@dataclass(frozen=True)
class AutomatonSection(Arguments):
    """Walks of a random automaton of a chosen entropy, labelled while they are observed with errors.

    The labels follow ``freerun.data.random_automaton``, the source is ``freerun.data.worlds.Observed``.

    Args:
        states: of the automaton.
        symbols: labels, and symbols of the source.
        entropy: of a label where those before are known and the source is not: nats a position, below log(symbols).
        right: probability that the source shows the label; 1 / symbols: it tells nothing.
        length: labels of a walk.
        walks: numbers of training, dev and test walks.
        seed: of the automaton and of the walks; the recipe's own seed does not change the data.
    """

    kind: Literal["automaton"] = "automaton"
    states: int = between(1, 1000, 8)
    symbols: int = between(2, 1000, 4)
    entropy: float = above(0.0, 0.7)
    right: float = between(0, 1, 0.6)
    length: int = between(2, 10_000, 30)
    walks: tuple[int, ...] = between(1, 10**6, (2048, 256, 512))
    seed: int = between(0, 2**63 - 1, 0)

    def problems(self) -> Iterable[str]:
        """Return which fields do not go together."""
        yield from _three(self)
        if self.entropy >= math.log(self.symbols):
            yield f"entropy must be below log(symbols) = {math.log(self.symbols):.4g} nats; got {self.entropy:g}"

    @property
    def world(self) -> Observed:
        """The law of labels and source."""
        labels = random_automaton(
            self.states, self.symbols, entropy=self.entropy, length=self.length, seed=fold(self.seed, "automaton")
        )
        return Observed(labels, self.right)

    def sample(self, count: int, length: int, seed: int = 0) -> Batch:
        """Draw walks, see ``freerun.data.worlds.Observed``."""
        return self.world.sample(count, length, seed)

    def load_symbols(self) -> LabelData:
        """The walks, with their law."""
        name = (
            f"automaton of {self.states} states and {self.symbols} symbols, entropy {self.entropy:g} nats, right "
            f"{self.right:g}, seed {self.seed}"
        )
        return _walks(self, name)


def _three(section: RingSection | AutomatonSection) -> Iterable[str]:
    """What is wrong with the numbers of walks; they become a tuple."""
    object.__setattr__(section, "walks", tuple(section.walks))
    if len(section.walks) != 3:
        yield f"walks must be three numbers: train, dev and test; got {list(section.walks)}"


def _walks(section: RingSection | AutomatonSection, name: str) -> LabelData:
    splits: dict[str, list[Pair]] = {}
    world = section.world
    for split, count in zip(SPLITS, section.walks, strict=True):
        walks = section.sample(count, section.length, seed=fold(section.seed, split))
        splits[split] = list(zip(walks.context["source"].tolist(), walks.targets.tolist(), strict=True))
    names = tuple(map(str, range(world.automaton.symbols)))
    return LabelData(splits, LabelCodec(names, names), name, exact=lambda source: world.filtered(source).argmax(2))


@dataclass(frozen=True)
class ChoralesSection(Arguments):
    """Bach's four-part chorales, of the pip package ``music21``: the bass under the soprano, in sixteenths.

    The package's scores are read, its code is not imported. The code has the BSD licence; some encodings may not be
    used commercially (``music21/corpus/license.txt``).

    Args:
        length: sixteenths of a piece, into which chorales are cut.
    """

    kind: Literal["chorales"] = "chorales"
    length: int = between(2, 10_000, 64)

    def load_symbols(self) -> LabelData:
        """The pieces."""
        return load_chorales(self.length)


class SymbolTask(DataTask):
    """Symbols scored position by position: what windows of levels and labelled sequences have in common."""

    settings: SymbolSettings
    evaluate_section = SymbolSettings
    select = "token_error"

    def evaluate(self, model: Module, split: str) -> Evaluation:
        if split not in ("dev", "test"):
            raise UserError(f"split must be dev or test; got {split!r}")
        return evaluate_symbols(model, self.scored(split), self.settings)

    def scored(self, split: str) -> Rows:
        """The rows of a split that are scored; the naive outputs with those of test."""
        chosen = evenly(self.data.count(split), self.items if split == "dev" else None)
        make = lambda numbers: self.data.rows(split, [chosen[n] for n in numbers])  # noqa: E731
        codec = self.data.codec
        names = (codec.source, codec.target) if isinstance(codec, LabelCodec) else None
        return Rows(len(chosen), make, names is None, self.naive if split == "test" else {}, names)

    def named(self, batch: Batch, numbers: Sequence[int]) -> Examples:
        codec, found = self.data.codec, super().named(batch, numbers)
        if not isinstance(codec, LabelCodec):
            return found
        there = zip(batch.context["source"], batch.context["source_mask"], strict=True)
        sources = [" ".join(codec.source[n] for n in row[mask].tolist()) for row, mask in there]
        return replace(found, sources=sources, decode=lambda ids: [codec.target[each] for each in ids])

    @cached_property
    def naive(self) -> dict[str, Naive]:
        """What needs no model."""
        raise NotImplementedError

    @staticmethod
    def load(settings: Any, model: Any) -> LevelData | LabelData:
        return settings.load_symbols()

    @staticmethod
    def sizes(data: LevelData | LabelData) -> tuple[int, ...]:
        return data.codec.sizes

    @staticmethod
    def diagnosis_input(
        model: Module, codec: Any, settings: SymbolSettings, data: LevelData | LabelData, items: int | None
    ) -> DiagnosisInput:
        chosen = parts(evenly(data.count("test"), items), settings.batch_size)
        names = data.codec.target if isinstance(data.codec, LabelCodec) else None
        options = DiagnosisOptions(decode=None if names is None else lambda ids: [names[each] for each in ids])
        return f"{data.name}, test part", [data.rows("test", part) for part in chosen], options


class LevelTask(SymbolTask):
    """Windows of a quantised series, scored position by position over the horizon."""

    data: LevelData
    models = ("recurrent", "transformer")
    data_sections: ClassVar[Mapping[str, type[Any]]] = {}  # those of series, with ``levels``
    evaluate_section = LevelSettings
    report: ClassVar[TaskReport] = LEVELS
    outputs_table = True

    @cached_property
    def naive(self) -> dict[str, Naive]:
        """What needs no model: forecasts from the past."""
        train, dev = (self.data.rows(split, range(self.data.count(split))) for split in ("train", "dev"))
        frequent = int(torch.tensor(self.data.frequencies).argmax())
        whole = torch.cat([train.context["source"], train.targets], 1)
        mask, past = torch.ones_like(whole[:, 1:], dtype=torch.bool), dev.context["source"]
        ngram = _best_ngram(whole[:, :-1], whole[:, 1:], mask, lambda n: n.go_on(past, dev.time), dev)
        known = self.data.codec.series.period
        period = known if known is not None and known <= past.shape[1] else _best_period(train)
        return {
            "last_value": lambda past, horizon: past[:, -1:].repeat(1, horizon),
            "most_frequent": lambda past, horizon: torch.full_like(past[:, :1], frequent).repeat(1, horizon),
            "cycle": lambda past, horizon: past[:, past.shape[1] - period + torch.arange(horizon) % period],
            "ngram": ngram.go_on,
        }

    @staticmethod
    def positions(data: LevelData, settings: SymbolSettings) -> tuple[int, str]:
        past, horizon = data.codec.series.past, data.codec.series.horizon
        return max(past, horizon), f"a window has data.past = {past} and data.horizon = {horizon} levels"

    @staticmethod
    def codec(description: Mapping[str, Any]) -> LevelCodec:
        return LevelCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: LevelCodec, settings: SymbolSettings, data: LevelData, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        if file is None:
            name, rows = f"{data.name}, test part", LevelTask(data, settings).scored("test")
        else:
            windows = read_windows(codec.series, file)
            make = lambda numbers: codec.batch(windows.make(numbers))  # noqa: E731
            name, rows = str(file.path), Rows(windows.count, make, True, {})
        facts = {"data": name, "windows": rows.count, "past": codec.series.past, "horizon": codec.series.horizon}
        return {**facts, "levels": len(codec.centres)}, evaluate_symbols(model, rows, settings)

    @staticmethod
    def generate_table(model: Module, codec: LevelCodec, settings: LevelSettings, file: DataFile) -> list[str]:
        """A CSV table of the steps to come of each series, as levels and as their values."""
        futures, tables = read_futures(codec.series, file, settings.length), list[Tensor]()
        for future in futures:
            batch = codec.batch(codec.series.batch(future.window)).to(model_device(model))
            levels = generate(model, batch, length=future.steps).entries[0].cpu()
            tables.append(torch.stack([levels.double(), codec.values(levels).double()], 1))
        return forecast_table(futures, tables, ("level", *codec.series.names))

    @staticmethod
    def trial_batch(codec: LevelCodec, rows: int) -> Batch:
        series = codec.series
        cells = torch.arange(rows)[:, None, None], torch.arange(series.past + series.horizon)[:, None]
        return codec.batch(series.batch((4 * uniform(0, *cells, torch.arange(1)) - 2).float()))


class LabelTask(SymbolTask):
    """Sequences with one label at each position, predicted from what is observed up to it."""

    data: LabelData
    models = ("recurrent_labeller",)
    data_sections: ClassVar[Mapping[str, type[Any]]] = {
        "ring": RingSection, "automaton": AutomatonSection, "chorales": ChoralesSection,
    }  # fmt: skip
    report: ClassVar[TaskReport] = LABELS
    one_output_per_line = True

    @cached_property
    def naive(self) -> dict[str, Naive]:
        """What needs no model, and the best labels of a known law."""
        train, dev = (self.data.rows(split, range(self.data.count(split))) for split in ("train", "dev"))
        frequent, observed = int(torch.tensor(self.data.frequencies).argmax()), dev.context["source"]
        ngram = _best_ngram(
            train.context["source"], train.targets, train.mask, lambda n: n.read(observed), dev, starts=True
        )
        found: dict[str, Naive] = {
            "most_frequent": lambda source, time: torch.full_like(source[:, :time], frequent),
            "ngram": lambda source, time: ngram.read(source[:, :time]),
        }
        if (exact := self.data.exact) is not None:
            found["exact"] = lambda source, time: exact(source[:, :time])
        return found

    @staticmethod
    def positions(data: LabelData, settings: SymbolSettings) -> tuple[int, str]:
        longest = max(len(labels) for pairs in data.splits.values() for _, labels in pairs)
        return longest, f"the longest sequence has {longest} labels"

    @staticmethod
    def codec(description: Mapping[str, Any]) -> LabelCodec:
        return LabelCodec.from_description(description)

    @staticmethod
    def score(
        model: Module, codec: LabelCodec, settings: SymbolSettings, data: LabelData | None, file: DataFile | None
    ) -> tuple[dict[str, Any], Evaluation]:
        if file is None:
            assert data is not None
            name, rows = f"{data.name}, test part", LabelTask(data, settings).scored("test")
        else:
            name, batch = str(file.path), _labelled_file(codec, file)
            make = lambda numbers: batch.select(torch.tensor(numbers))  # noqa: E731
            rows = Rows(batch.size, make, False, {})
        return {"data": name, "sequences": rows.count}, evaluate_symbols(model, rows, settings)

    @staticmethod
    def line_problems(
        model: Module, codec: LabelCodec, settings: SymbolSettings, lines: Sequence[str], origins: Sequence[str]
    ) -> list[list[str]]:
        found: list[list[str]] = []
        for origin, line in zip(origins, lines, strict=True):
            found.append(_wrong_length(origin, line.split()))
            with collected(found[-1]):
                codec.ids("source", line.split(), origin)
        return found

    @staticmethod
    def generate_lines(model: Module, codec: LabelCodec, settings: SymbolSettings, lines: Sequence[str]) -> list[str]:
        """The labels of each line of observed symbols, with blanks between them."""
        outputs: list[str] = []
        for chosen in parts(range(len(lines)), settings.batch_size):
            sources = [lines[n].split() for n in chosen]
            batch = codec.label_batch(sources).to(model_device(model))
            entries = generate(model, batch, length=batch.time).entries.tolist()
            rows = zip(sources, entries, strict=True)
            outputs += [" ".join(codec.target[label] for label in row[: len(source)]) for source, row in rows]
        return outputs

    @staticmethod
    def trial_batch(codec: LabelCodec, rows: int) -> Batch:
        numbers = bits(0, torch.arange(rows)[:, None], torch.arange(rows + 4)).abs().tolist()
        sides = ([[names[n % len(names)] for n in row[: 5 + number]] for number, row in enumerate(numbers)]
                 for names in (codec.source, codec.target))  # fmt: skip
        return codec.label_batch(*sides)


def _best_ngram(
    observed: Tensor,
    following: Tensor,
    mask: Tensor,
    predict: Callable[[NGram], Tensor],
    dev: Batch,
    *,
    starts: bool = False,
) -> NGram:
    """The n-gram, of 1 to 8 symbols, with the fewest wrong predictions on dev; the shortest of equal ones."""
    symbols = int(torch.maximum(observed.max(), following.max())) + 1
    longest = max(order for order in (1, *_ORDERS) if symbols**order < 2**62 and order <= observed.shape[1] + starts)
    whole = fit_ngram(observed, following, mask, longest)
    shorter = [replace(whole, tables=whole.tables[:order]) for order in range(1, longest + 1)]
    wrong = [int(((predict(each) != dev.targets) & dev.mask).sum()) for each in shorter]
    return shorter[wrong.index(min(wrong))]


def _best_period(train: Batch) -> int:
    """How many steps of the past are best repeated, on training windows."""
    past = train.context["source"]

    def wrong(period: int) -> int:
        repeated = past[:, past.shape[1] - period + torch.arange(train.time) % period]
        return int((repeated != train.targets).sum())

    return min(range(1, past.shape[1] + 1), key=wrong)


def _labelled_file(codec: LabelCodec, file: DataFile) -> Batch:
    """The batch of a file: observed symbols, a tab, their labels, a sequence a line."""
    lines, bad = read_lines(file.path, file.encoding, "observed symbols, a tab and their labels a line")
    problems = [f"{file.path}:{number}: {text}" for number, text in bad]
    pairs: list[tuple[list[str], list[str]]] = []
    for number, line in lines:
        where = f"{file.path}:{number}"
        source, tab, target = line.partition("\t")
        pair = source.split(), target.split()
        if not tab or len(pair[0]) != len(pair[1]):
            problems.append(
                f"{where}: {len(pair[0])} observed symbols and {len(pair[1])} labels; expected as many of both, with a "
                "tab between them"
            )
            continue
        problems += _wrong_length(where, pair[0])
        for side, symbols in zip(("source", "target"), pair, strict=True):
            with collected(problems):
                codec.ids(side, symbols, where)
        pairs.append(pair)
    refuse(first_problems(str(file.path), problems))
    return codec.label_batch([source for source, _ in pairs], [target for _, target in pairs])


def _wrong_length(where: str, symbols: Sequence[str]) -> list[str]:
    if not symbols:
        return [f"{where}: the line is empty; expected observed symbols with blanks between them"]
    if len(symbols) > LONGEST:
        return [f"{where}: has {len(symbols):,} symbols, and at most {LONGEST:,} are read as one sequence"]
    return []


def evaluate_symbols(model: Module, rows: Rows, settings: SymbolSettings | None = None) -> Evaluation:
    """Scores of a model position by position, on gold history and running freely; see ``freerun.metrics.table``.

    Of levels also how far a wrong one lies from gold. With them the scores of what needs no model, for whose names see
    ``LevelTask.naive``.
    """
    settings = settings or SymbolSettings()
    found: list[dict[str, Tensor]] = []
    items: list[dict[str, Any]] = []
    for numbers in parts(range(rows.count), settings.batch_size):
        batch = rows.make(numbers)
        outputs = _outputs(model, batch)
        source = batch.context["source"]
        outputs |= {name: predict(source, batch.time) for name, predict in rows.naive.items()}
        found.append({"mask": batch.mask, "gold": batch.targets, **outputs})
        items += _texts(batch, outputs["free_running"], rows.names)
    longest = max(part["gold"].shape[1] for part in found)
    joined = {
        name: torch.cat([F.pad(part[name], (0, longest - part[name].shape[1])) for part in found]) for name in found[0]
    }
    mask, gold, loss = joined.pop("mask"), joined.pop("gold"), joined.pop("loss")
    positions = mask.sum(1)
    counts = {name: _counts(output, gold, mask) for name, output in joined.items()}
    own, forced = counts.pop("free_running"), counts.pop("teacher_forced")
    columns = {"free_errors": own["errors"], "forced_errors": forced["errors"], "positions": positions}
    if rows.ordered:
        columns |= {"near": own["near"], "distance": own["distance"]}
    lists = zip(*(column.tolist() for column in columns.values()), strict=True)
    items = [
        {"source": f"row {n}", **text, **dict(zip(columns, row, strict=True))}
        for n, (text, row) in enumerate(zip(items, lists, strict=True))
    ]
    free = _scores(own, positions, rows.ordered)
    for name, each in counts.items():
        free |= {f"{name}_{score}": value for score, value in _scores(each, positions, rows.ordered).items()}
    gold_scores = {"loss": float(loss.sum()) / int(positions.sum()), **_scores(forced, positions, False)}
    curves = {name: _by_position(output, gold, mask) for name, output in joined.items()}
    return Evaluation(gold_scores, free, items, curves)


def _texts(batch: Batch, own: Tensor, names: tuple[Sequence[str], Sequence[str]] | None) -> Iterator[dict[str, Any]]:
    """What is observed, gold and the free run of each row, symbols with blanks between them."""

    def text(side: int, row: Tensor) -> str:
        ids: list[int] = row.tolist()
        return " ".join(str(n) if names is None else names[side][n] for n in ids)

    source, there = batch.context["source"], batch.context["source_mask"]
    for row, mask in enumerate(batch.mask):
        observed, output, gold = source[row][there[row]], own[row][mask], batch.targets[row][mask]
        yield {"prompt": text(0, observed), "output": text(1, output), "references": [text(1, gold)]}


def _outputs(model: Module, batch: Batch) -> dict[str, Tensor]:
    """(rows, time) the greedy outputs on gold history and running freely, and the loss of each position."""
    here = batch.to(model_device(model))
    with eval_mode(model), torch.no_grad():
        logits = model(here).float()
        loss = F.cross_entropy(logits.transpose(1, 2), here.targets, reduction="none").double()
        own = generate(model, here, length=here.time).entries
    outputs = {"loss": loss.masked_fill(~here.mask, 0), "teacher_forced": logits.argmax(-1), "free_running": own}
    return {name: each.cpu() for name, each in outputs.items()}


def _counts(output: Tensor, gold: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """(rows,) wrong positions, positions at most one level from gold, and summed distance in levels."""
    far = (output - gold).abs().masked_fill(~mask, 0)
    return {"errors": (far > 0).sum(1), "near": ((far <= 1) & mask).sum(1), "distance": far.sum(1)}


def _scores(counts: Mapping[str, Tensor], positions: Tensor, ordered: bool) -> dict[str, float]:
    total = float(positions.sum())
    scores = {"token_error": 100 * float(counts["errors"].sum()) / total}
    if ordered:
        scores |= {"within_one": 100 * float(counts["near"].sum()) / total}
        scores |= {"level_error": float(counts["distance"].sum()) / total}
    return scores


def _by_position(output: Tensor, gold: Tensor, mask: Tensor) -> list[float]:
    """Share of wrong outputs at each position, in percent."""
    wrong = ((output != gold) & mask).sum(0).double()
    return (100 * wrong / mask.sum(0)).tolist()
