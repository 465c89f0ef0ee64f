"""Free-running scores in the evaluations of any ``transformers.Trainer``."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from accelerate.utils.operations import gather_object
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback

from freerun.data.files import counted
from freerun.errors import UserError, listed
from freerun.integrations.hf_generate import (
    Generated,
    end_ids,
    first_is_learnt,
    generate,
    has_length,
    trainer_settings,
    turns,
)
from freerun.integrations.hf_mistakes import tokenizer_of
from freerun.integrations.hf_runner import adapted, collated_batch, has_targets
from freerun.keys import bits
from freerun.methods import free_running, teacher_forcing
from freerun.metrics.text import chrf, edit_distance
from freerun.models.huggingface.model import context_of
from freerun.rollin import eval_mode

_LOSSES = ("teacher_forced_loss", "teacher_forced_token_accuracy", "free_running_loss", "free_running_token_accuracy")
_HIGHER = {
    **{name: "accuracy" in name for name in _LOSSES}, "free_running_exact_match": True, "free_running_chrf": True,
    "free_running_edit_distance": False, "free_running_without_end": False,
}  # fmt: skip
"""Scores that may select a model, and whether more is better."""
_NEITHER = ("free_running_rows", "free_running_cost", "free_running_length_ratio")

_OUTSIDE = 256
"""Rows of an evaluation outside of training that no evaluation in training has decided."""

_FIRST = 0.8
"""Share of its budget that the first evaluation may use: later ones are to score the same rows."""

_ENOUGH = 64
"""Rows below which a sample that was decided in a hurry grows with the training time."""

_SAMPLE = 0x5A3C
"""Key of the order in which rows are taken: the same rows in every run, whatever its seed."""


class Callback(TrainerCallback):
    """Adds free-running scores to every evaluation of a trainer: ``trainer.add_callback(hf.Callback(trainer))``.

    For a stock ``transformers.Trainer``, ``Seq2SeqTrainer``, TRL ``SFTTrainer`` or a trainer of freerun; no subclass.
    On a sample of the evaluation set, the same rows at every evaluation, over all processes:

    - ``eval_teacher_forced_loss``, ``eval_free_running_loss`` (nats a token) and ``..._token_accuracy`` (share of
      positions whose likeliest token is gold): on gold history, and on the model's own choices over the gold length.
    - by ``model.generate`` under the model's own generation settings, for every run of labels after the ids before it:
      ``eval_free_running_exact_match`` (share), ``_chrf`` (sacreBLEU, 0 to 100), ``_edit_distance`` (ids, summed over
      the references' ids), ``_length_ratio`` (output ids per reference id) and ``_without_end`` (share of outputs that
      predicted no end symbol). Without a tokenizer (``processing_class``) exact match is of ids, and there is no chrF.
    - ``eval_free_running_rows`` scored, and ``eval_free_running_cost``: seconds of these scores per second of training.

    All are metrics like others: ``metric_for_best_model="eval_free_running_chrf"``.

    Args:
        trainer: the trainer it is added to. None: bound by a trainer of freerun; then all rows and no generation.
        draw: how own tokens are chosen for the loss: ``"greedy"``, ``"sample"`` (always with the same coins) or a draw.
        batches: at most so many evaluation batches are scored; None: no such limit.
        cost: the sample's size follows from it: at most this share of the training time so far is spent. The size is
            decided at the first evaluation after a step; later it is only reduced, or raised to 64. Outside of
            training: the same rows, or 256.
        rows: number of rows scored instead, or ``"all"``.
        generation: arguments of ``model.generate`` beside the model's own settings. Where neither has a length, an
            output is cut after twice its reference's ids plus 8.

    Raises:
        UserError: before the first step, where a score cannot be computed, or ``metric_for_best_model`` would select
            the worst.

    >>> Callback(rows=0)
    Traceback (most recent call last):
    freerun.errors.UserError: rows must be a whole number of at least 1, or 'all'; got 0

    What it is not: the trainer's own ``eval_loss``, which is a mean over batches, over the whole set.
    """

    def __init__(
        self,
        trainer: Any = None,
        draw: Any = "greedy",
        batches: int | None = None,
        *,
        cost: float = 0.05,
        rows: int | str | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        problems: list[str] = []
        if batches is not None and not batches >= 1:
            problems.append(f"batches must be at least 1, or None for all; got {batches}")
        if rows not in (None, "all") and not (isinstance(rows, int) and rows >= 1):
            problems.append(f"rows must be a whole number of at least 1, or 'all'; got {rows!r}")
        if not 0 < cost <= 1:
            problems.append(f"cost must lie in (0, 1], a share of the training time; got {cost!r}")
        if trainer is not None and (isinstance(trainer, type) or not hasattr(trainer, "evaluation_loop")):
            simple = isinstance(trainer, (int, float, str))
            got = f"{trainer!r} (draw={trainer!r} is an argument)" if simple else type(trainer).__name__
            problems.append(f"the first argument is the trainer; got {got}")
        if problems:
            raise UserError(problems)
        self.method = free_running(draw=draw)
        self.batches, self.cost = batches, cost
        self.rows = "all" if rows is None and trainer is None else rows
        self.generation = dict(generation or {})
        self.generates = trainer is not None or generation is not None
        self.trainer: Any = None
        self._adapter: Any = None
        self._free_length = self._first = self._added = False
        self._clock = _Clock()
        if trainer is not None:
            self.attach(trainer)

    def attach(self, trainer: Any) -> None:
        """Add the scores to what this trainer's ``evaluation_loop`` returns."""
        if self.trainer is trainer:
            return
        self.trainer, self._adapter = trainer, None
        # no subclass: logs, best models and early stopping read the metrics that the loop returns
        trainer.evaluation_loop = functools.partial(self._evaluated, trainer.evaluation_loop)
        inner = getattr(trainer.model, "generation_config", None)
        self._free_length = inner is not None and not has_length(trainer.model, self._settings(trainer))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot be scored before the first step."""
        trainer = self._bound()
        self._clock = _Clock(time.perf_counter())
        if self.generates and args.eval_strategy != "no":
            for inputs in first_rows(trainer):
                self._prepare(trainer, inputs)
            if problems := self._problems(args):
                raise UserError(problems)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse an evaluation to which no scores were added."""
        self._bound()

    def _bound(self) -> Any:
        """The trainer."""
        if self.trainer is None:
            raise UserError(
                "hf.Callback() does not know its trainer: trainer.add_callback(hf.Callback(trainer)), or a trainer of "
                "freerun (freerun.hf.Trainer, freerun.hf.Seq2SeqTrainer, or freerun.hf.MethodMixin before the trainer)"
            )
        return self.trainer

    def _prepare(self, trainer: Any, inputs: Mapping[str, Any]) -> Any:
        """The adapter of the trainer's model; an evaluation set that cannot be scored is refused."""
        if inputs.get("labels") is None:
            raise UserError(
                f"hf.Callback: a batch of the evaluation set has no labels; it has {listed(inputs)}: let the collator "
                "make them (DataCollatorForSeq2Seq, DataCollatorForLanguageModeling(mlm=False))"
            )
        if getattr(trainer, "is_deepspeed_enabled", False):
            raise UserError("hf.Callback: DeepSpeed is not supported: use DDP (leave deepspeed out)")
        if self._adapter is None or self._adapter.model is not trainer.model:
            with eval_mode(trainer.model):
                self._adapter = adapted(trainer.model, trainer._prepare_inputs(inputs))
        return self._adapter

    def _problems(self, args: Any) -> list[str]:
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        sets = self.trainer.eval_dataset if isinstance(self.trainer.eval_dataset, dict) else {}
        # of several evaluation sets: the set's name comes before the score's
        best = next((rest for name in sets if (rest := best.removeprefix(f"{name}_")) in (*_HIGHER, *_NEITHER)), best)
        better = _HIGHER.get(best)
        if best == "free_running_chrf" and _decoder_of(self.trainer) is None:
            return ["metric_for_best_model='eval_free_running_chrf' needs texts: give the trainer processing_class="]
        if best in _NEITHER:
            return [f"metric_for_best_model={best!r} has no better direction: {listed(_HIGHER)} have one"]
        if better is None or args.greater_is_better is None or args.greater_is_better == better:
            return []
        return [f"greater_is_better={not better} would keep the worst by {best}: greater_is_better={better}"]

    # -- an evaluation

    def _evaluated(self, loop: Any, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The trainer's own evaluation, with these scores among its metrics."""
        began = time.perf_counter()
        output = loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        trainer = self.trainer
        self._added |= self in trainer.callback_handler.callbacks
        if not self._added:
            _once(self, "hf.Callback(trainer) is not among the trainer's callbacks, and adds no scores: "
                  "trainer.add_callback(hf.Callback(trainer))")  # fmt: skip
        if self in trainer.callback_handler.callbacks and output.metrics is not None:
            scores = self.scores(trainer, dataloader, metric_key_prefix, began)
            output.metrics.update({f"{metric_key_prefix}_{name}": score for name, score in scores.items()})
            if scores and (why := other_scale(trainer, first=self._first)):
                loss = f"{metric_key_prefix}_loss"
                _once(self, f"{loss} is another quantity than {metric_key_prefix}_teacher_forced_loss (nats a token): "
                      f"{listed(why)}")  # fmt: skip
        self._clock.elsewhere += time.perf_counter() - began
        return output

    @torch.no_grad()
    def scores(
        self, trainer: Any, dataloader: Any, prefix: str = "eval", began: float | None = None
    ) -> dict[str, float]:
        """The scores of an evaluation set, on all ranks; empty where it has no labels.

        Args:
            trainer: whose model is scored; its mode and PyTorch's generators are restored.
            dataloader: of the trainer, over the evaluation set.
            prefix: of the metrics, by which earlier evaluations are found.
            began: when the evaluation began; None: now.
        """
        started = time.perf_counter()
        training = self._clock.training(started if began is None else began)
        data, world = _Rows(dataloader), trainer.accelerator.num_processes
        size = max(1, trainer.args.per_device_eval_batch_size)
        number, budget, slowly = self._size(trainer, data, prefix, training)
        order = data.order(number) if number < len(data) or budget is not None else range(len(data))
        sums, outputs, devices = torch.zeros(5, dtype=torch.float64), list[Generated](), devices_of(trainer)
        done, per_rank = 0, 1 if slowly else size
        with eval_mode(trainer.model), torch.random.fork_rng(devices):
            while done < number:
                chunk = order[done : min(done + per_rank * world, number)]
                before = time.perf_counter()
                part = self._chunk(trainer, dataloader, data, chunk, per_rank)
                if part is None:
                    return {}
                sums, outputs = sums + part[0], outputs + part[1]
                done += len(chunk)
                now = time.perf_counter()
                # the next chunk has twice the rows, until they fill a batch
                factor = min(2, size / per_rank)
                if budget is not None and _latest(trainer, now - started + factor * (now - before)) > budget:
                    break
                per_rank = min(2 * per_rank, size)
        spent = _latest(trainer, time.perf_counter() - started)
        if not sums[-1]:
            return {}
        found: dict[str, float] = dict(zip(_LOSSES, (sums[:-1] / sums[-1]).tolist(), strict=True))
        if self.generates:
            found |= self._text_scores(trainer, outputs)
            found |= {"free_running_rows": float(done), **self._clock.spend(prefix, spent, training, done)}
            self._warn_of_cost(trainer, found, done)
        return found

    def _size(self, trainer: Any, data: _Rows, prefix: str, training: float) -> tuple[int, float | None, bool]:
        """Rows to score; the seconds they may take, None: any; and whether nothing is known of what a row takes."""
        size = trainer.args.per_device_eval_batch_size * trainer.accelerator.num_processes
        most = min(len(data), len(data) if self.batches is None else self.batches * size)
        if self.rows is not None:
            return (most if self.rows == "all" else min(most, int(self.rows))), None, False
        keys = (f"{prefix}_free_running_rows", "eval_free_running_rows")
        lines = [line for line in trainer.state.log_history if line.get("step", 0) > 0]
        known = next((found for key in keys if (found := [int(line[key]) for line in lines if key in line])), [])
        sets = len(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else 1
        budget = self.cost * -_latest(trainer, -training) / sets
        if not trainer.is_in_train:
            return min(most, known[-1] if known else _OUTSIDE), None, False
        if trainer.state.global_step == 0:  # before any step nothing can be measured
            return min(most, size), None, False
        if not known:
            return most, _FIRST * budget, True
        left, each = self._clock.left(prefix, budget)
        if not each:  # resumed
            return min(most, known[-1]), None, False
        grown = min(_ENOUGH, int(_FIRST * left / each))
        return min(most, max(known[-1], grown), max(1, int(left / each))), left, False

    def _chunk(
        self, trainer: Any, dataloader: Any, data: _Rows, chunk: Any, per_rank: int
    ) -> tuple[Tensor, list[Generated]] | None:
        """Sums over some rows on all ranks, and what is generated for them; None where the set has no labels."""
        rank = trainer.accelerator.process_index
        mine = list(chunk[rank * per_rank : (rank + 1) * per_rank])
        # a rank without rows computes one for nothing: under FSDP all have to call the model
        collated = _collated(dataloader, [data[number] for number in mine or chunk[:1]])
        if collated.get("labels") is None:
            return None
        inputs = trainer._prepare_inputs(collated)
        adapter = self._prepare(trainer, inputs)
        labels = inputs["labels"]
        numbers = torch.tensor(mine or [0], device=labels.device)
        if len(labels) != len(numbers):  # a collator that flattens rows into one
            numbers = int(numbers[0]) * len(labels) + torch.arange(len(labels), device=labels.device)
        sums, outputs = [0.0] * 5, list[Generated]()
        if has_targets(adapter, inputs):
            batch = collated_batch(adapter, inputs, numbers)
            self._first |= not adapter.is_encoder_decoder and bool(first_is_learnt(batch).any())
            sums = self._sums(trainer, adapter, batch)
            outputs = self._generated(trainer, adapter, batch) if self.generates else []
        each = gather_object([(sums, outputs) if mine else ([0.0] * 5, [])])
        return torch.tensor([sums for sums, _ in each], dtype=torch.float64).sum(0), [g for _, own in each for g in own]

    def _sums(self, trainer: Any, adapter: Any, batch: Any) -> list[float]:
        """Five numbers: summed loss and right choices on gold, the same on the model's own history, and the count."""
        parts: list[Tensor] = []
        with trainer.accelerator.autocast():
            for method in (teacher_forcing(), self.method):
                outputs = method.run(adapter, batch, step=0).outputs
                loss = F.cross_entropy(outputs.transpose(1, 2).float(), batch.targets, reduction="none")
                parts += [loss, (outputs.argmax(-1) == batch.targets).to(loss.dtype)]
        parts.append(batch.mask.to(parts[0].dtype))
        return [float(part[batch.mask].cpu().double().sum()) for part in parts]

    # -- generation

    def _settings(self, trainer: Any) -> dict[str, Any]:
        """Arguments of ``generate`` beside the model's own settings: the trainer's, and the user's."""
        return trainer_settings(trainer) | self.generation

    def _generated(self, trainer: Any, adapter: Any, batch: Any) -> list[Generated]:
        settings = self._settings(trainer)
        some = turns(adapter, batch, end_ids(adapter.inner, settings))
        if not some:
            return []
        numbers = context_of(batch).first.new_tensor(batch.row_numbers.tolist())
        torch.manual_seed(int(numbers.sum()) % 2**31)  # settings that sample draw the same again
        return generate(adapter, batch, some, settings, free_length=self._free_length)

    def _text_scores(self, trainer: Any, outputs: list[Generated]) -> dict[str, float]:
        tokenizer = _decoder_of(trainer)
        if not outputs:
            _once(self, "hf.Callback: no row has a prompt (its first token is learnt): nothing is generated for it")
            return {}
        right = [each.ids == each.reference for each in outputs]
        length = max(1, sum(len(each.reference) for each in outputs))
        found = dict[str, float]()
        if tokenizer is None:
            _once(self, "hf.Callback: without a tokenizer (processing_class) exact match is of ids; there is no chrF")
        else:
            own, gold = (
                [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
                for ids in ([each.ids for each in outputs], [each.reference for each in outputs])
            )
            right = [a == b for a, b in zip(own, gold, strict=True)]
            found["free_running_chrf"] = chrf(own, gold)
        return {
            "free_running_exact_match": sum(right) / len(right),
            **found,
            "free_running_edit_distance": sum(edit_distance(each.ids, each.reference) for each in outputs) / length,
            "free_running_length_ratio": sum(len(each.ids) for each in outputs) / length,
            "free_running_without_end": sum(not each.ended for each in outputs) / len(outputs),
        }

    def _warn_of_cost(self, trainer: Any, found: Mapping[str, float], rows: int) -> None:
        cost = found.get("free_running_cost", 0.0)
        if self.rows is None and trainer.is_in_train and trainer.state.global_step and cost > 1.2 * self.cost:
            _once(
                self,
                f"hf.Callback: free-running scores cost more than cost={self.cost:g} of the training time: {cost:.0%} "
                f"for {counted(rows, 'row')}: evaluate less often (eval_steps), raise cost=, or set rows=",
            )


def other_scale(trainer: Any, *, first: bool) -> list[str]:
    """Return why a trainer's own evaluation loss is not cross-entropy in nats a token; empty: it is.

    Args:
        trainer: any.
        first: a row's first token has a label, which nothing predicts.
    """
    args, config = trainer.args, getattr(trainer.model, "config", None)
    loss_type, smoothing = getattr(args, "loss_type", None), args.label_smoothing_factor
    found = [f"it is that of loss_type={loss_type!r}"] if loss_type not in (None, "nll", "chunked_nll") else []
    if smoothing:
        found.append(f"it has label_smoothing_factor={smoothing:g}")
    if trainer.compute_loss_func is not None:
        found.append("it is that of compute_loss_func")
    if getattr(config, "output_router_logits", False):
        found.append("it has the loss on routing")
    # transformers' own way from the loss to its count: TRL's and freerun's have their own
    stock = type(trainer).compute_loss is Trainer.compute_loss or getattr(trainer, "method", 0) is None
    if first and stock and loss_type is None and not getattr(trainer, "_loss_shifts_labels", True):
        found.append(
            f"the trainer divides the loss of a {type(trainer.model).__name__} by one label a row too many, the first "
            "token's (trainer._loss_shifts_labels = True mends it)"
        )
    return found


class _Clock:
    """Seconds of training, and of these scores, since training began."""

    def __init__(self, began: float | None = None) -> None:
        self.began = began
        self.elsewhere = 0.0  # in evaluations
        self.spent: dict[str, float] = {}
        self.each: dict[str, float] = {}  # seconds a row

    def training(self, now: float) -> float:
        return 0.0 if self.began is None else now - self.began - self.elsewhere

    def spend(self, prefix: str, seconds: float, training: float, rows: int) -> dict[str, float]:
        """Add an evaluation's seconds; the share of the training time that all have taken."""
        if not training:
            return {}
        self.spent[prefix] = self.spent.get(prefix, 0.0) + seconds
        self.each[prefix] = seconds / max(1, rows)
        return {"free_running_cost": sum(self.spent.values()) / training}

    def left(self, prefix: str, budget: float) -> tuple[float, float]:
        """Seconds left of a budget, and what a row took at the last evaluation; 0: not known."""
        return budget - self.spent.get(prefix, 0.0), self.each.get(prefix, 0.0)


class _Rows:
    """The rows of an evaluation set by number; of a stream the first 4096."""

    def __init__(self, dataloader: Any) -> None:
        if getattr(dataloader, "batch_sampler", None) is None:
            raise UserError(
                "hf.Callback collates rows of the evaluation set itself, and this loader's dataset makes complete "
                "batches (batch_size=None): give the trainer a dataset of rows"
            )
        dataset = dataloader.dataset
        try:
            self._length, self._rows = len(dataset), dataset
            self._stream = not hasattr(dataset, "__getitem__")
        except TypeError:
            self._stream = True
        if self._stream:
            inner = dataset.dataset if type(dataset).__name__ == "IterableDatasetShard" else dataset
            self._rows = list(islice(inner, 4096))
            self._length = len(self._rows)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Any:
        return self._rows[int(number)]

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def order(self, number: int) -> list[int]:
        """The first rows of an order that is the same in every run: a smaller sample is part of a larger one."""
        return bits(_SAMPLE, torch.arange(len(self))).argsort(stable=True)[:number].tolist()


def _collated(dataloader: Any, rows: list[Any]) -> Any:
    return dataloader.collate_fn(rows)


def first_rows(trainer: Any) -> Iterator[Any]:
    """The first row of every evaluation set that has one, collated."""
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    for name, rows in sets.items():
        if rows is not None:
            loader = trainer.get_eval_dataloader(name or rows)
            if (first := next(iter(_Rows(loader)), None)) is not None:
                yield _collated(loader, [first])


def _latest(trainer: Any, seconds: float) -> float:
    """The largest of all ranks' numbers."""
    if trainer.accelerator.num_processes == 1:
        return seconds
    mine = torch.tensor([seconds], dtype=torch.float32, device=trainer.args.device)
    return float(trainer.accelerator.gather(mine).max())


def devices_of(trainer: Any) -> list[Any]:
    """The devices whose generators a trainer draws from, beside the processor."""
    return [trainer.args.device] if trainer.args.device.type == "cuda" else []


def _decoder_of(trainer: Any) -> Any:
    """What makes texts of ids; None: nothing."""
    found = tokenizer_of(trainer)
    return found if hasattr(found, "batch_decode") else None


def _once(callback: Callback, message: str) -> None:
    known = callback.__dict__.setdefault("_warned", set[str]())
    if message[:40] not in known and callback.trainer.accelerator.is_local_main_process:
        known.add(message[:40])
        warnings.warn(message, stacklevel=2)
