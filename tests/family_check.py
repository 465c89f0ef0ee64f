"""One class of transformers tried whole: right, refused with a reason that holds, not runnable, or our fault."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import freerun as fr
import oracles_hf as oracle
from builders import gradients
from families import COMPLETIONS, LENGTHS, PROMPTS, shake
from family_configs import ORDINARY, model_of, tiny
from family_inputs import extras, source_of
from family_media import Media, UnfitError, media_of
from freerun import hf
from freerun.errors import UserError
from freerun.models.huggingface import placeholder_ids
from freerun.models.huggingface.media import mark_ids
from freerun.types import Cached
from oracles_hf import KEY, NUMBERS, STEP, Row, assert_histories, engines

SHAKEN = [(seed, *weights) for seed in range(4) for weights in ((0.3, 2.2), (0.6, 1.8), (1.0, 1.2), (0.1, 2.2))]


class Fault(Exception):
    """freerun raised what is no refusal, or gave another number."""


class NotRunnable(Exception):
    """transformers itself raised."""

    def __init__(self, text: str, model: Any = None) -> None:
        super().__init__(text)
        self.model = model


@dataclass
class Entry:
    """A line of the table."""

    name: str
    mapping: str
    verdict: str = ""
    engines: list[str] = field(default_factory=list)
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    media: str = ""  # images or sound beside ids: "yes", or why there are none; "": the class reads none
    seconds: float = 0.0
    parameters: int = 0


@dataclass
class Bounds:
    """Relative distances of losses and gradients that are hoped for, and that are allowed; the largest ones found."""

    loss: float
    gradient: float
    most_loss: float
    most_gradient: float
    wide: bool = True  # all was within the first two

    def near(self, what: str, found: Tensor, expected: Tensor) -> None:
        a, b = float(found.detach()), float(expected.detach())
        far = abs(a - b) / max(abs(b), 1.0)
        if not far <= self.most_loss:
            raise Fault(f"{what}: {a:.12g}, expected {b:.12g}")
        self.wide &= far <= self.loss

    def same_gradient(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        largest = max(float(g.nan_to_num().abs().max()) for g in expected.values())
        for name, wanted in expected.items():
            if not torch.equal(wanted.isnan(), found[name].isnan()):
                raise Fault(f"gradient of {name} is NaN at other places than that of the row-by-row loop")
            far = float((wanted - found[name]).nan_to_num().abs().max())
            if not far <= self.most_gradient * largest:
                raise Fault(f"gradient of {name} differs by {far:.3g}, the largest is {largest:.3g}")
            self.wide &= far <= self.gradient * largest


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def tried(entry: Entry, kind: type[Any]) -> Entry:
    """Fill in what was found of a class."""
    try:
        model, worlds = _prepared(entry, kind)
    except NotRunnable as error:
        entry.verdict, entry.reason = "not runnable", str(error)
        if error.model is not None:
            _adapt_refuses(entry, error.model)
        return entry
    for n, world in enumerate(worlds):
        if n == 0 or entry.verdict in ("right", "refused"):
            _tried_in(entry, model, world)
    return entry


def _tried_in(entry: Entry, model: Any, world: Any) -> None:
    """What is found with ids alone, or with images or sound beside them."""
    inputs, before = world.inputs("right"), (entry.verdict, entry.reason, entry.engines, len(entry.notes))
    rows = world.rows(inputs)
    entry.verdict, entry.reason, entry.engines = "", "", []
    try:
        m = hf.adapt(model, **world.example(inputs))
        bounds = _bounds(entry, model, rows[0])
        _compared(entry, model, m, world, bounds)
        if not bounds.wide:
            entry.notes.append("computes in float32 in places")
        entry.verdict = "right"
    except Fault as error:
        entry.verdict, entry.reason = "our fault", str(error)
    except UserError as error:
        _refused(entry, error, model, rows, inputs if isinstance(world, Media) else None)
    except Exception as error:
        entry.verdict, entry.reason = "our fault", f"{one_line(error)} at {where(error)}"
    if isinstance(world, Media):
        _joined(entry, world.modality, *before)


def _joined(entry: Entry, called: str, verdict: str, reason: str, engines: list[str], begun: int) -> None:
    """One line of what was found with ids alone before, and now with images."""
    if entry.verdict == "our fault":
        entry.reason = f"with {called}: {entry.reason}"
        return
    if entry.verdict == "refused" and verdict == "right":
        entry.media, entry.notes[begun:] = f"with {called} refused: {entry.reason}", entry.notes[begun:]
        entry.verdict, entry.reason, entry.engines = verdict, reason, engines
        return
    entry.media = called if entry.verdict == "right" else ""
    if verdict == "refused" and entry.verdict == "right":
        entry.notes.append(f"ids alone are refused: {reason}")
    if verdict == "right":
        fewer = [engine for engine in engines if engine not in entry.engines]
        entry.notes += [f"with {called} not by {', '.join(fewer)}"] if fewer else []
        entry.engines = engines
    entry.notes[:] = dict.fromkeys(entry.notes)


def _adapt_refuses(entry: Entry, model: Any) -> None:
    """What does not run by itself is refused by adapt, by name."""
    try:
        hf.adapt(model)
    except UserError as error:
        entry.notes.append(f"hf.adapt: {' '.join(str(error).split())}")
    except Exception as error:
        entry.verdict, entry.reason = "our fault", f"adapt: {one_line(error)} at {where(error)}"
    else:
        entry.notes.append("hf.adapt takes it")


def where(error: BaseException) -> str:
    """The last lines of freerun and of all in a traceback."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "freerun" in f.filename]
    return " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in [frames[-1], *ours[-1:]])


def texts() -> list[Tensor]:
    """Prompt and completion of four texts."""
    g = torch.Generator().manual_seed(5)
    return [torch.randint(ORDINARY.start, ORDINARY.stop, (p + c,), generator=g)
            for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]  # fmt: skip


def collated(model: Any, padding: str) -> dict[str, Tensor]:
    """What a collator makes for a model."""
    if model.config.is_encoder_decoder:
        g = torch.Generator().manual_seed(6)
        labels = torch.randint(ORDINARY.start, ORDINARY.stop, (len(LENGTHS), max(LENGTHS)), generator=g)
        labels[torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]] = -100
        return {**source_of(model, len(LENGTHS), padding), "labels": labels}
    made, time = texts(), max(p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True))
    ids, targets = torch.zeros(len(made), time, dtype=torch.int64), torch.full((len(made), time), -100)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(made):
        begin = 0 if padding == "right" else time - len(row)
        ids[r, begin : begin + len(row)], mask[r, begin : begin + len(row)] = row, 1
        targets[r, begin + PROMPTS[r] : begin + len(row)] = row[PROMPTS[r] :]
    return {"input_ids": ids, "attention_mask": mask, "labels": targets}


def rows_of(model: Any, inputs: dict[str, Tensor]) -> list[Row]:
    """The examples by themselves, with the first decoder id that the model's own shift gives."""
    if not model.config.is_encoder_decoder:
        return oracle.causal_rows(inputs, NUMBERS)
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    first = [model.config.decoder_start_token_id] * len(NUMBERS)
    if own is not None:
        first = own(labels=inputs["labels"])[:, 0].tolist()
    rows = oracle.seq2seq_rows(inputs, 0, NUMBERS)
    return [Row(row.source, start, row.gold, row.counts, row.number) for row, start in zip(rows, first, strict=True)]


def _prepared(entry: Entry, kind: type[Any]) -> tuple[Any, list[Any]]:
    """A lively model in the widest type that it computes in, and its batches: of ids alone, with images."""
    torch.manual_seed(0)
    try:
        model = model_of(entry.name, tiny(kind)).eval()
    except Exception as error:
        raise NotRunnable(f"built: {one_line(error)}") from error
    entry.parameters = sum(p.numel() for p in model.parameters())
    texts = _Texts(model)
    if not model.can_generate():
        return model, [texts]
    worlds: list[Any] = []
    fault: Exception | None = None
    try:
        _widest(entry, model, texts)
        worlds.append(texts)
    except Exception as error:
        fault = error
        shake(model, *SHAKEN[0])  # gates that are closed at first
    try:
        if (media := media_of(model)) is not None:
            if fault is not None:
                _widest(entry, model, media)
                entry.notes.append(f"ids alone raise {one_line(fault)[:100]}")
            worlds.append(media)
    except UnfitError as error:
        entry.media = f"on ids alone: no images are made up here ({error})"
    except Exception as error:
        fault = error
    if not worlds:
        assert fault is not None
        raise NotRunnable(f"its own forward: {one_line(fault)} at {where(fault)}", model) from fault
    return model, worlds


def _widest(entry: Entry, model: Any, world: Any) -> None:
    """Put the model in the widest type that it computes in, and shake it."""
    for dtype in (torch.float64, torch.float32):
        try:
            model.to(dtype)
            inputs = world.inputs("right")
            with torch.no_grad():
                rows = world.rows(inputs)
                if dtype == torch.float64 and not oracle.predicted(model, rows[0], rows[0].gold).isfinite().all():
                    raise ArithmeticError("not finite in float64")
            break
        except Exception:
            if dtype == torch.float32:
                raise
    _lively(entry, model, rows)


@torch.no_grad()
def _lively(entry: Entry, model: Any, rows: list[Row]) -> None:
    """Shake the weights until free runs differ."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    best, chosen = -1, SHAKEN[0]
    for weights in SHAKEN:
        model.load_state_dict(before)
        shake(model, *weights)
        free = [oracle.full_prefix(model, row, 0.0, "greedy", KEY, STEP) for row in rows]
        finite = all(bool(oracle.predicted(model, r, h).isfinite().all()) for r, h in zip(rows, free, strict=True))
        score = min(len({tuple(f[row.prompt :]) for f, row in zip(free, rows, strict=True)}), 3) + min(
            len({s for f, row in zip(free, rows, strict=True) for s in f[row.prompt :]}), 6
        ) if finite else -1  # fmt: skip
        if score > best:
            best, chosen = score, weights
        if score == 9:
            break
    model.load_state_dict(before)
    shake(model, *chosen)
    if best < 7:
        entry.notes.append(f"dull weights (liveliness {best} of 9)")


def _bounds(entry: Entry, model: Any, row: Row) -> Bounds:
    """How near numbers must be: float32 anywhere in the model rounds sums of another order otherwise."""
    kept: set[torch.dtype] = set()

    def pack(saved: Tensor) -> Tensor:
        kept.add(saved.dtype)
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        logits = oracle.predicted(model, row, row.gold)
    if model.dtype == torch.float32:
        entry.notes.append("runs in float32 alone")
        return Bounds(1e-5, 2e-4, 1e-5, 2e-4)
    single = logits.dtype != torch.float64 or bool(kept & {torch.float32, torch.bfloat16, torch.float16})
    return Bounds(1e-10, 1e-9, *((2e-6, 2e-5) if single else (1e-10, 1e-9)))


# -- right


@dataclass(frozen=True)
class _Texts:
    """Batches of ids alone; ``family_media.Media`` has those with images."""

    model: Any

    def inputs(self, padding: str) -> dict[str, Tensor]:
        return collated(self.model, padding)

    def rows(self, inputs: dict[str, Tensor]) -> list[Row]:
        return rows_of(self.model, inputs) if self.model.can_generate() else []

    def example(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return extras(self.model, inputs)


def _silence(model: Any) -> None:
    """Ids that stand for images are not predicted: a loop over full prefixes would have to tell them from images."""
    ids = [*(i for known in placeholder_ids(model.config).values() for i in known), *mark_ids(model.config)]
    if ids:
        model.get_output_embeddings().register_forward_hook(
            lambda _, __, out: out.index_fill(-1, torch.tensor(ids, dtype=torch.int64), -40.0)
        )


def _compared(entry: Entry, model: Any, m: Any, world: Any, bounds: Bounds) -> None:
    if isinstance(world, Media):
        _silence(model)
    inputs = world.inputs("right")
    rows = world.rows(inputs)
    shifts = _shifts(model, inputs, rows)
    if not shifts:
        entry.notes.append(
            "its own loss does not shift labels: they are shifted by the collator, and refused unshifted"
        )
        _refuses_unshifted(m, inputs)
        inputs = shifted(inputs)
    batch = m.batch(**inputs, rows=torch.tensor(NUMBERS))
    golds = [list(row.gold) for row in rows]
    naive = oracle.loss(model, rows, golds)
    plain = fr.teacher_forcing().run(m, batch, STEP, KEY)
    bounds.near("teacher-forced loss and the row-by-row loop", plain.loss, naive)
    _own_loss(entry, model, inputs, rows, plain.loss)
    _sides(entry, model, m, world, batch, shifts)
    entry.engines = ["auto", *engines(m), "draft", *(["Window(3)"] if isinstance(m, Cached) else [])]
    free = [oracle.full_prefix(model, row, 0.0, "greedy", KEY, STEP) for row in rows]
    _generated(entry, model, rows, free)
    _drop_refusing(entry, m, batch)
    for engine, called in _called(entry.engines):
        fed = fr.free_running(draw="greedy", engine=engine).run(m, batch, STEP, KEY).fed
        _same(f"ratio 0 by {called}", fed, free)
    for draw in ("sample", "gumbel"):
        drawn = fr.draws.Sample() if draw == "sample" else fr.draws.Sample(coupling="gumbel")
        mixed = [oracle.full_prefix(model, row, 0.5, draw, KEY, STEP) for row in rows]
        expected = oracle.loss(model, rows, mixed)
        try:
            wanted = gradients(model, expected)
        except AssertionError as error:  # a class of its own backward wants training mode
            entry.notes.append(f"its own gradient raises in evaluation mode: {one_line(error)[:120]}")
            wanted = {}
        if any(bool(g.isnan().any()) for g in wanted.values()) and draw == "sample":
            entry.notes.append("its own gradient is NaN in places")
        for engine, called in _called(entry.engines):
            outcome = fr.scheduled_sampling(0.5, draw=drawn, engine=engine).run(m, batch, STEP, KEY)
            _same(f"{draw} at .5 by {called}", outcome.fed, mixed)
            bounds.near(f"loss at .5 by {called}", outcome.loss, expected)
            if engine == "auto" and wanted:
                bounds.same_gradient(gradients(model, outcome.loss), wanted)


def _drop_refusing(entry: Entry, m: Any, batch: Any) -> None:
    """Engines that refuse this model by name, of which there may be some, but neither auto nor jacobi."""
    for engine, called in list(_called(entry.engines)):
        if called in ("auto", "jacobi"):
            continue
        try:
            fr.free_running(draw="greedy", engine=engine).run(m, batch, STEP, KEY)
        except UserError as error:
            entry.engines.remove(called)
            entry.notes.append(f"{called} is refused: {' '.join(str(error).split())[:160]}")


def _called(names: list[str]) -> Iterator[tuple[Any, str]]:
    for name in names:
        yield (fr.Window(3) if name == "Window(3)" else name), name


def _near(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    a, b = float(found.detach()), float(expected.detach())
    if not abs(a - b) <= tolerance * max(abs(b), 1.0):
        raise Fault(f"{what}: {a:.12g}, expected {b:.12g}")


def _same(what: str, fed: Any, histories: list[list[int]]) -> None:
    try:
        assert_histories(fed, histories)
    except AssertionError:
        got = [fed.history[r, : len(h)].tolist() for r, h in enumerate(histories)]
        r = next(r for r, (a, b) in enumerate(zip(got, histories, strict=True)) if a != b)
        raise Fault(f"{what}: row {r} has {got[r]}, expected {histories[r]}") from None


def _own_loss(entry: Entry, model: Any, inputs: dict[str, Tensor], rows: list[Row], ours: Tensor) -> None:
    """The model's own loss on the batch."""
    try:
        theirs = model(**(inputs if rows[0].source else oracle.own_arguments(model, inputs))).loss
    except Exception as error:
        entry.notes.append(f"its own loss raises {one_line(error)[:120]}")
        return
    if theirs is None:
        entry.notes.append("the class computes no loss")
        return
    theirs, ours = theirs.detach(), ours.detach()
    if abs(float(theirs) - float(ours)) <= 2e-5 * max(1.0, abs(float(ours))):
        return
    own = _own_rows(model, inputs, rows)
    note = "its own loss on a padded batch is not that of its rows" if own else "its own loss is another quantity"
    entry.notes.append(f"{note}: {float(theirs):.4f} against {float(ours):.4f}")


def shifted(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """With labels that are the ids after their positions, for a class that does not shift."""
    return {**inputs, "labels": torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)}


@torch.no_grad()
def _shifts(model: Any, inputs: dict[str, Tensor], rows: list[Row]) -> bool:
    """Whether the class shifts the labels of a causal model itself: on shifted ones its loss is not the loop's."""
    if model.config.is_encoder_decoder or rows[0].source:
        return True
    row, one = rows[0], {name: value[:1, : len(rows[0].gold) + 1] for name, value in shifted(inputs).items()}
    try:
        loss = model(**one).loss
    except Exception:
        return True
    return loss is None or abs(float(loss) - float(oracle.loss(model, [row], [list(row.gold)]))) > 1e-5


_TEXT = ("input_ids", "attention_mask", "labels")


@torch.no_grad()
def _own_rows(model: Any, inputs: dict[str, Tensor], rows: list[Row]) -> bool:
    """Whether the model's own loss of every row by itself is that of the row's prefixes."""
    for r, row in enumerate(rows):
        one = {k: v[r : r + 1] for k, v in inputs.items() if not row.source or k in _TEXT or k in row.source}
        if row.source and not model.config.is_encoder_decoder:
            keep = one["attention_mask"][0].bool()
            one = {k: one[k][:, keep] for k in _TEXT}
            one |= {k: v(one["input_ids"]) if callable(v) else v for k, v in row.source.items()}
        elif not model.config.is_encoder_decoder:
            keep = one["attention_mask"][0].bool()
            one = {k: v[:, keep] for k, v in one.items()}
        else:
            one["labels"] = one["labels"][one["labels"] != -100][None]
        theirs = model(**one).loss
        if abs(float(theirs) - float(oracle.loss(model, [row], [list(row.gold)]))) > 2e-5:
            return False
    return True


def _refuses_unshifted(m: Any, inputs: dict[str, Tensor]) -> None:
    try:
        m.batch(**inputs)
    except UserError:
        return
    raise Fault("labels that the class's own loss would take for something else are taken")


def _sides(entry: Entry, model: Any, m: Any, world: Any, batch: Any, shifts: bool) -> None:
    """Padding on the left gives the same batch."""
    left = world.inputs("left")
    given = left if shifts else shifted(left)
    other = m.batch(**given, rows=torch.tensor(NUMBERS))
    if not model.config.is_encoder_decoder and not torch.equal(other.history, batch.history):
        raise Fault("padding on the left gives another batch")
    found = fr.teacher_forcing().run(m, other, STEP, KEY).loss
    rows = world.rows(left)
    _near("loss with padding on the left", found, oracle.loss(model, rows, [list(r.gold) for r in rows]), 2e-5)
    _inputs_left(entry, model, m, other, given, found)
    back = m.inputs(batch)
    for name in ("input_ids", "labels"):
        if name in back and name != "labels" and not torch.equal(back[name], world.inputs("right")[name]):
            raise Fault(f"inputs() does not give {name} back")


@torch.no_grad()
def _inputs_left(entry: Entry, model: Any, m: Any, batch: Any, left: dict[str, Tensor], ours: Tensor) -> None:
    """What inputs() returns for padding on the left gives the loss of the rows, where any positions do."""
    losses: dict[str, float] = {}
    for called, arguments in (
        ("ours", m.inputs(batch)),
        ("none", left),
        ("counted", oracle.own_arguments(model, left)),
    ):
        try:
            loss = model(**arguments).loss
        except Exception:
            return
        if loss is None:
            return
        losses[called] = abs(float(loss) - float(ours.detach()))
    if losses["ours"] > 2e-5 and min(losses.values()) < 2e-5:
        raise Fault(
            f"inputs() of a batch padded on the left gives a loss {losses['ours']:.3g} away from that of its rows"
        )
    if min(losses.values()) > 2e-5:
        entry.notes.append("its own loss with padding on the left is not that of its rows")


def _generated(entry: Entry, model: Any, rows: list[Row], free: list[list[int]]) -> None:
    """The model's own generate, row by row."""
    for more in ({}, {"use_cache": False}):
        try:
            spoken = [
                oracle.generated(model, [row], len(row.gold) - row.prompt, num_beams=1, **more, **_first(model, row))[
                    0
                ].tolist()
                for row in rows
            ]
        except Exception as error:
            entry.notes.append(f"its own generate({_said(more)}) raises {one_line(error)[:160]}")
            continue
        if [[*row.gold[: row.prompt], *s] for row, s in zip(rows, spoken, strict=True)] == free:
            return
        entry.notes.append(f"its own generate({_said(more)}) is not the argmax of its own forward")


def _first(model: Any, row: Row) -> dict[str, int]:
    """The decoder's first id, which is not always the configuration's (a language's)."""
    return {"decoder_start_token_id": row.first} if model.config.is_encoder_decoder else {}


def _said(more: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in more.items())


# -- refused


def _refused(
    entry: Entry, error: UserError, model: Any, rows: list[Row], inputs: dict[str, Tensor] | None = None
) -> None:
    entry.reason = " ".join(str(error).split())
    evidence = _holds(entry.reason, model, rows) if inputs is None else _holds_with_media(model, rows, inputs)
    entry.verdict = "refused" if evidence else "our fault"
    entry.notes.append(evidence or "the reason could not be confirmed")


@torch.no_grad()
def _holds(reason: str, model: Any, rows: list[Row]) -> str:
    """What confirms a refusal, by calls of the model alone; empty: nothing does."""
    for part, confirm in _REASONS.items():
        if part in reason and (found := confirm(model, rows)):
            return found
    return ""


@torch.no_grad()
def _holds_with_media(model: Any, rows: list[Row], inputs: dict[str, Tensor]) -> str:
    """The same with images: logits that are not those of the ids, or rows that hang on those beside them."""
    together = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    if together.shape[1] != inputs["input_ids"].shape[1]:
        return f"logits {tuple(together.shape)} for ids {tuple(inputs['input_ids'].shape)}"
    for r, row in enumerate(rows):
        alone = oracle.predicted(model, row, row.gold)
        far = float((together[r, : len(alone)] - alone).abs().max() / alone.abs().max())
        if far > 1e-5:
            return f"row {r} beside the others differs by {far:.2g} from the row alone"
    return ""


def _generates(model: Any, rows: list[Row]) -> str:
    return "" if model.can_generate() else "can_generate() is False"


def _moved(model: Any, row: Row, before: list[int], after: list[int], upto: int) -> float:
    a, b = (oracle.predicted(model, row, h) for h in (before, after))
    return float((a[: upto + 1] - b[: upto + 1]).abs().max() / a.abs().max())


def _other(symbol: int) -> int:
    return ORDINARY.start + (symbol + 1 - ORDINARY.start) % len(ORDINARY)


def _not_causal(model: Any, rows: list[Row]) -> str:
    row = rows[1]
    for t in range(len(row.gold)):
        after = [*row.gold[:t], _other(row.gold[t]), *row.gold[t + 1 :]]
        far = _moved(model, row, list(row.gold), after, t)
        if far > 1e-5:
            return f"another id at {t + 1} moves the logits at or before {t} by {far:.2g} of the largest"
    return ""


def _reads_none(model: Any, rows: list[Row]) -> str:
    row = rows[1]
    after = [_other(symbol) for symbol in row.gold]
    far = _moved(model, row, list(row.gold), after, len(row.gold))
    return f"all ids changed move no logits (by {far:.2g})" if far < 1e-6 else ""


def _depends_on_length(model: Any, rows: list[Row]) -> str:
    g = torch.Generator().manual_seed(1)
    for row in rows[:2]:
        for time in (len(row.gold), 60):
            longer = torch.randint(ORDINARY.start, ORDINARY.stop, (time,), generator=g).tolist()
            whole = oracle.predicted(model, row, longer)
            for n in range(1, time, max(1, time // 8)):
                far = float((whole[: n + 1] - oracle.predicted(model, row, longer[:n])).abs().max() / whole.abs().max())
                if far > 1e-5:
                    return f"the first {n} of {time} logits differ by {far:.2g} from those of the prefix alone"
    return ""


def _depends_on_rows(model: Any, rows: list[Row]) -> str:
    if model.config.is_encoder_decoder:
        return ""
    g = torch.Generator().manual_seed(1)
    for time in (7, 60):
        ids = torch.randint(ORDINARY.start, ORDINARY.stop, (3, time), generator=g)
        whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        alone = model(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1])).logits
        if (far := float((whole[:1] - alone).abs().max() / whole.abs().max())) > 1e-5:
            return f"a row of {time} ids beside two others differs by {far:.2g}"
    return ""


def _capacity(model: Any, rows: list[Row]) -> str:
    """With room for one token in each expert: a row beside others, in training mode without dropout, and a step."""
    routers = [m for m in model.modules() if getattr(m, "expert_capacity", None)]
    held = [m.expert_capacity for m in routers]
    time = min(len(row.gold) for row in rows)
    ids = torch.tensor([[row.first, *row.gold[:time]] for row in rows])
    source = {name: torch.cat([row.source[name] for row in rows]) for name in rows[0].source}
    for m in model.modules():
        m.train(not isinstance(m, torch.nn.Dropout) and bool(routers))
    try:
        for m in routers:
            m.expert_capacity = 1
        beside = model(**source, decoder_input_ids=ids, use_cache=False).logits[:1]
        alone = model(**rows[0].source, decoder_input_ids=ids[:1], use_cache=False).logits
        model.eval()
        first = model(**rows[0].source, decoder_input_ids=ids[:1, :-1])
        last = model(**rows[0].source, decoder_input_ids=ids[:1, -1:], past_key_values=first.past_key_values).logits
        whole = model(**rows[0].source, decoder_input_ids=ids[:1], use_cache=False).logits
    finally:
        model.eval()
        for m, capacity in zip(routers, held, strict=True):
            m.expert_capacity = capacity
    far = float((beside - alone).abs().max() / alone.abs().max())
    step = float((whole[0, -1] - last[0, -1]).abs().max() / whole.abs().max())
    found = f"with room for one token a row beside others differs by {far:.2g}, a step over the cache by {step:.2g}"
    return found if max(far, step) > 1e-5 else ""


def _random(model: Any, rows: list[Row]) -> str:
    far = _moved(model, rows[1], list(rows[1].gold), list(rows[1].gold), len(rows[1].gold))
    return f"two calls differ by {far:.2g}" if far > 1e-7 else ""


def _not_finite(model: Any, rows: list[Row]) -> str:
    logits = oracle.predicted(model, rows[1], rows[1].gold)
    return "" if bool(logits.isfinite().all()) else "logits of its own forward are not finite"


def _streams(model: Any, rows: list[Row]) -> str:
    logits = oracle.predicted(model, rows[1], rows[1].gold)
    return f"logits {tuple(logits.shape)} for {len(rows[1].gold) + 1} ids"


def _other_length(model: Any, rows: list[Row]) -> str:
    logits, read = oracle.predicted(model, rows[1], rows[1].gold), len(rows[1].gold) + 1
    return f"logits {tuple(logits.shape)} for {read} ids" if logits.shape[0] != read else ""


_REASONS: dict[str, Callable[[Any, list[Row]], str]] = {
    "does not generate": _generates,
    "returns logits of": _other_length,
    "causal": _not_causal,
    "unshifted_history": _not_causal,
    "reads_last_entry": _not_causal,
    "reads_targets": _not_causal,
    "uses_history": _reads_none,
    "length_inert": _depends_on_length,
    "rows_independent": _depends_on_rows,
    "deterministic": _random,
    "finite": _not_finite,
    "codebooks": _streams,
    "limited capacity": _capacity,
}


def signature(model: Any) -> set[str]:
    """Arguments of a model's forward."""
    return set(inspect.signature(type(model).forward).parameters)
