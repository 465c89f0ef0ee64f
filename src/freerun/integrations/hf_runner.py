"""A method in a Hugging Face trainer: its share of a step's loss, and what is refused before the first step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import CheckpointError, UserError
from freerun.integrations.hf_adapt import adapt
from freerun.integrations.hf_mistakes import label_notices, label_problems, tokenizer_problems
from freerun.keys import fold
from freerun.methods.controls import refuse_modules, refuse_no_history, refuse_scores
from freerun.methods.rehearsal import rehearsal
from freerun.methods.report import StepStats, replacement_counts
from freerun.objectives import CrossEntropy
from freerun.rollin import resolve_engine
from freerun.training.memory import try_longest
from freerun.training.weights import pack, unpack
from freerun.types import Step

Inputs = Mapping[str, Any]

STATE = "freerun_method.safetensors"
"""File of a trainer's checkpoint with the state of a method that has one."""
_NUMBER = "number:"  # begins the names of the numbers in it


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


@dataclass(eq=False)
class AccumulationWindow:
    """The micro-batches of one optimizer step on this rank."""

    firsts: list[int]  # of each micro-batch, the number of its first learnt row in the step's global batch
    count: Tensor  # what the step's loss is divided by
    world: int = 1
    share: bool = True  # the count is that of all ranks, as trainers have it; else a step is the mean of ranks' means
    micro: int = 0  # the number of the micro-batch that is next

    def numbered(self, batch: Batch) -> Batch:
        """The next micro-batch, its rows numbered in the optimizer step's global batch."""
        # rows that learn nothing draw nothing: how a collator lays out padding and documents does not enter
        number = (batch.mask.any(1).cumsum(0) - 1).clamp_min(0)
        return batch.made(rows=self.firsts[self.micro] + number)

    def loss(self, total: Tensor) -> Tensor:
        """A micro-batch's share of the step's mean loss."""
        loss = total / self.count.to(total.dtype)
        # gradients are summed over micro-batches and averaged over ranks
        return loss * self.world if self.share else loss


def has_targets(adapter: Any, inputs: Mapping[str, Any]) -> bool:
    """Return whether a collated batch has a label that is predicted; the first token of a row or document is not."""
    labels: Tensor = inputs["labels"]
    counts = labels != -100
    if adapter.is_encoder_decoder or labels.dim() != 2:
        return bool(counts.any())
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    # of another shape: refused where the batch is made
    present = mask.bool() if mask is not None and mask.shape == labels.shape else torch.ones_like(counts)
    first = present.cumsum(1) == 1
    if positions is not None and positions.shape[1:] == labels.shape[1:]:
        first = first | (positions == 0)
    return bool((counts & present & ~first).any())


def collated_batch(adapter: Any, inputs: Mapping[str, Any], rows: Tensor | None = None) -> Batch:
    """Return a collated batch as a Batch; a column ``replaceable`` may hold 0 and 1, and less where a collator pads."""
    replaceable = inputs.get("replaceable")
    if isinstance(replaceable, Tensor) and not replaceable.is_floating_point():
        inputs = {**inputs, "replaceable": replaceable > 0}
    return adapter.batch(**inputs, rows=rows)


def without_columns(inputs: Inputs) -> dict[str, Any]:
    """A collated batch without the columns that a model's own forward does not take."""
    return {name: value for name, value in inputs.items() if name not in ("replaceable", "forced_bos_token_id")}


def loss_count(method: Any, batch: Batch, step: int, key: int) -> Tensor:
    """Return what a total is divided by: by the method, or positions of the mask, or the sum of their weights."""
    shaped: Batch = method.apply_horizon(batch, step, key) if hasattr(method, "apply_horizon") else batch
    if hasattr(method, "counted"):
        return method.counted(shaped)
    return shaped.mask.sum() if shaped.weights is None else shaped.weights[shaped.mask].sum()


def smoothed(method: Any, label_smoothing: float) -> Any:
    """Return the method with the trainer's ``label_smoothing_factor`` in its cross-entropy.

    >>> from freerun.methods import teacher_forcing
    >>> smoothed(teacher_forcing(), 0.1)
    teacher_forcing(objective=CrossEntropy(label_smoothing=0.1))
    """
    if not label_smoothing:
        return method
    own: Any = getattr(method, "__dataclass_fields__", {}).get("objective")
    if own is None or not own.init:
        raise UserError(
            f"label_smoothing_factor={label_smoothing} in the arguments: {method.name} has a loss of its own, which "
            "label smoothing is no part of; set label_smoothing_factor=0"
        )
    objective = method.objective
    if (isinstance(objective, str) and objective in ("auto", "cross_entropy")) or objective == CrossEntropy():
        return replace(method, objective=CrossEntropy(label_smoothing))
    raise UserError(
        f"label_smoothing_factor={label_smoothing} in the arguments and objective={objective!r} in the method are two "
        "losses: set label_smoothing_factor=0, or leave the method's objective out"
    )


class MethodRunner:
    """What a trainer calls of a method."""

    def __init__(self, trainer: Any, method: Any, loss_from: str) -> None:
        refuse_no_history(method)
        refuse_modules(method)
        refuse_scores(method)
        self.trainer = trainer
        self.loss_from = loss_from
        self._unsmoothed = method
        if problems := loss_problems(trainer):
            raise UserError(problems)
        self.method = self._smoothed()
        self.begins_from: Path | None = None  # the checkpoint that a call of train goes on from
        unknown = "its class does not declare own_loss, the phrases that name what of its loss is its own (): nothing"
        lost = getattr(method, "own_loss", (unknown,)) if loss_from == "trainer" else ()
        if lost:
            raise UserError(
                [
                    *(f"{method!r}: {each}" for each in lost),
                    "the loss of this trainer is its own (its compute_loss, compute_loss_func, or the model's loss on "
                    "routing): only the ids that the model reads are the method's. Leave these arguments out, or, "
                    "where the trainer's is plain cross-entropy, set loss_from = 'method' in your class",
                ]
            )
        self._stats = StepStats.of(method)
        self._window: AccumulationWindow | None = None
        self._adapter: Any = None
        self._checked: Any = None
        if getattr(trainer.model, "main_input_name", "input_ids") == "input_ids":
            # tried as it is: later it may run in half precision, where small differences mean nothing
            adapt(trainer.model)

    def adapter(self, model: nn.Module, sample: Inputs | None = None) -> Any:
        """The model as the trainer has wrapped it, as a Model; ``sample`` is tried where none can be invented."""
        if self._adapter is None or self._adapter.model is not model:
            self._adapter = adapt(model) if sample is None else adapted(model, sample)
        return self._adapter

    def open(self, samples: list[Inputs], device: torch.device) -> Tensor:
        """Begin an optimizer step on such micro-batches: the number of its target tokens over all ranks."""
        adapter = self.adapter(self.trainer.model_wrapped, samples[0])
        if self._checked is not self.trainer.state:
            # a call of train: the arguments may have changed since the last
            self.method = self._smoothed()
            self._check(adapter, samples)
            self._load_state()
            self._checked = self.trainer.state
        elif self._window is not None and not self._window.micro:
            raise UserError(
                f"the compute_loss of {type(self.trainer).__name__} never called super().compute_loss: the method had "
                "no part in the last optimizer step. Call it, and change its loss; or let the class come after "
                "freerun.hf.MethodMixin (class Mine(hf.MethodMixin, YourTrainer)): its loss is taken on swapped ids"
            )
        each = [self._counted(adapter, sample) for sample in samples]
        count = torch.stack([counted.to(device) for counted, _ in each]).sum()
        accelerator, share = self.trainer.accelerator, bool(self.trainer.args.average_tokens_across_devices)
        # a sampler deals batches out in turn: micro-batch j of rank r is batch j * world + r of the step
        width = max(len(samples), self.trainer.args.gradient_accumulation_steps)
        rows = torch.tensor([rows for _, rows in each] + [0] * (width - len(samples)), device=device)[None]
        if accelerator.num_processes > 1:
            rows = accelerator.gather(rows)
            count = accelerator.gather(count[None]).sum() if share else count
        before = rows.T.flatten().cumsum(0).view(width, -1) - rows.T
        firsts = before[: len(samples), accelerator.process_index].tolist()
        # where nothing counts the loss is 0, and so is its gradient
        count = torch.where(count == 0, 1, count)
        self._window = AccumulationWindow(firsts, count, accelerator.num_processes, share)
        return count

    def loss(self, model: nn.Module, inputs: Inputs, *, logits: bool) -> tuple[Tensor, Tensor | None]:
        """The next micro-batch's share of the step's mean loss; if requested its logits aligned with the targets."""
        adapter, window = self.adapter(model), self._current(model, inputs)
        batch = self._next(adapter, window, inputs)
        if batch is None:
            # every parameter takes part, with a gradient of 0
            plain = self.plain_inputs(model, inputs)
            found = model(**{name: value for name, value in plain.items() if name != "labels"}).logits
            return found[torch.zeros_like(found, dtype=torch.bool)].sum(), found
        with self.trainer.accelerator.autocast():
            outcome = self.method.run(adapter, batch, self._step(), self._key())
        self._stats.add(outcome.report)
        return window.loss(outcome.total), outcome.outputs if logits else None

    def mixed_inputs(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """The next micro-batch as the model's own forward takes it, with the ids that the method feeds."""
        adapter = self.adapter(model)
        batch = self._next(adapter, self._current(model, inputs), inputs)
        if batch is None:
            return self.plain_inputs(model, inputs)
        with self.trainer.accelerator.autocast():
            if hasattr(self.method, "mix_history"):
                fed, report = self.method.mix_history(adapter, batch, self._step(), self._key())
            else:
                fed = self.method.transform(adapter, batch, self._step(), self._key())
                report = replacement_counts(batch, fed.history, int((fed.history != batch.history).sum()))
        self._stats.add(report)
        return adapter.inputs(fed)

    def plain_inputs(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """A batch as the model's own forward takes it, on gold, with a decoder's ids: labels may be popped."""
        plain = without_columns(inputs)
        adapter = self.adapter(model)
        if adapter.is_encoder_decoder and plain.get("decoder_input_ids") is None and plain.get("labels") is not None:
            plain["decoder_input_ids"] = adapter.shifted(plain["labels"], len(plain["labels"]))
        return plain

    def pop_log(self) -> dict[str, float]:
        """Return a log line's numbers of the micro-batches since the last, over all ranks; all have to call it."""
        stats, self._stats = self._stats, StepStats.of(self.method)
        gathered = self.trainer.accelerator.gather(torch.tensor([stats.sums()], device=self.trainer.args.device))
        summed = stats.with_sums(gathered.sum(0).tolist())
        return summed.numbers() if summed.micro_batches else {}

    def save_state(self, folder: Path) -> None:
        """Write the state of a method that has one beside a checkpoint's weights; all processes have to call it."""
        state = getattr(self.method, "state_dict", dict)()
        if not state or not self.trainer.is_world_process_zero():
            return
        if not folder.is_dir():
            raise UserError(
                f"{self.method!r} has a state, which belongs into the trainer's checkpoint, and {folder} is not there: "
                "train outside of hyperparameter_search, or use a method without a state"
            )
        numbers = {f"{_NUMBER}{k}": torch.tensor(v, dtype=torch.float64) for k, v in state.items() if not _is_tensor(v)}
        (folder / STATE).write_bytes(pack({**numbers, **{k: v for k, v in state.items() if _is_tensor(v)}}))

    def _load_state(self) -> None:
        """Give a method its state back; it begins anew where the training does."""
        load: Any = getattr(self.method, "load_state_dict", dict)
        if self.begins_from is None or not getattr(self.method, "state_dict", dict)():
            return load({})
        path = self.begins_from / STATE
        try:
            kept = unpack(path.read_bytes()).items()
            load({k.removeprefix(_NUMBER): v.item() if k.startswith(_NUMBER) else v for k, v in kept})
        except (OSError, RuntimeError, CheckpointError) as error:
            raise CheckpointError(
                f"{path}: the state of {self.method.name} cannot be read ({error}): begin anew, or from a checkpoint "
                "that was saved with this method"
            ) from error

    def _smoothed(self) -> Any:
        if self.loss_from == "trainer":
            return self._unsmoothed
        return smoothed(self._unsmoothed, self.trainer.args.label_smoothing_factor)

    def _current(self, model: nn.Module, inputs: Inputs) -> AccumulationWindow:
        if self._window is not None and self._window.micro < len(self._window.firsts):
            return self._window
        # called by hand: a window of this batch alone
        count, _ = self._counted(self.adapter(model), inputs)
        return AccumulationWindow([0], torch.where(count == 0, 1, count))

    def _next(self, adapter: Any, window: AccumulationWindow, inputs: Inputs) -> Batch | None:
        """The window's next micro-batch; None where nothing of it is learnt."""
        batch = window.numbered(collated_batch(adapter, inputs)) if has_targets(adapter, inputs) else None
        window.micro += 1
        return batch

    def _counted(self, adapter: Any, sample: Inputs) -> tuple[Tensor, int]:
        """What a micro-batch adds to the count that the step's loss is divided by, and how many of its rows learn."""
        if not has_targets(adapter, sample):
            return sample["labels"].new_zeros(()), 0
        batch = collated_batch(adapter, sample)
        return loss_count(self.method, batch, self._step(), self._key()), int(batch.mask.any(1).sum())

    def _key(self) -> int:
        return fold(self.trainer.args.seed, "train")

    def _step(self) -> int:
        step = self.trainer.state.global_step
        return Step(step, sample=step * self._rows(), epoch=self.trainer.state.epoch or 0.0)

    def _rows(self) -> int:
        """Rows of an optimizer step, over all ranks."""
        accumulate, world = self.trainer.args.gradient_accumulation_steps, self.trainer.accelerator.num_processes
        return accumulate * world * self._micro_batch_size()

    def _micro_batch_size(self) -> int:
        args, world = self.trainer.args, self.trainer.accelerator.num_processes
        return max(1, args.train_batch_size // (world if args.accelerator_config.split_batches else 1))

    def _check(self, adapter: Any, samples: list[Inputs]) -> None:
        """Refuse what cannot go well, before the first step of a call of ``train``."""
        trainer, method = self.trainer, self.method
        problems = [*place_problems(trainer, method), *tokenizer_problems(trainer, adapter.inner)]
        if any(sample.get("labels") is None for sample in samples):
            problems.append(
                f"a batch has no labels; it has {', '.join(samples[0])}: let the collator make them "
                "(DataCollatorForSeq2Seq, DataCollatorForLanguageModeling(mlm=False))"
            )
        elif not any(bool((sample["labels"] != -100).any()) for sample in samples):
            problems.append(
                "no token of the first optimizer step is to be learnt: all labels are -100; was the completion cut off "
                "with the prompt at max_length, or was everything masked as prompt?"
            )
        else:
            problems += label_problems(trainer, adapter, samples)
        if not any(parameter.requires_grad for parameter in adapter.parameters()):
            problems.append("no parameter of the model requires a gradient: unfreeze some, or add an adapter (LoRA)")
        try:
            method.check(trainer.state.max_steps)
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)
        label_notices(trainer, adapter, samples)
        # where none learns anything, making the batch raises why
        batch = collated_batch(adapter, next((each for each in samples if has_targets(adapter, each)), samples[0]))
        # on the model within: processes need not wait for each other, and nothing is compiled for one row
        rehearse(method, adapt(adapter.inner), batch, trainer.state.max_steps, self._key())
        self._try_longest(adapter, samples)

    def _try_longest(self, adapter: Any, samples: list[Inputs]) -> None:
        """Note what memory the longest horizon needs, on the largest micro-batch of the first step."""
        trainer, state = self.trainer, self.trainer.state
        learnt = [each for each in samples if has_targets(adapter, each)]
        if not learnt or getattr(self.method, "horizon", None) is None:
            return
        largest, inner = max(learnt, key=lambda each: each["labels"].numel()), adapt(adapter.inner)
        inner.train()
        with trainer.accelerator.autocast():
            try_longest(
                self.method, inner, lambda: collated_batch(adapter, largest), state.max_steps,
                at=lambda n: Step(n, sample=n * self._rows(), epoch=n * state.num_train_epochs / state.max_steps),
                note=lambda text: print(text, file=sys.stderr) if trainer.is_world_process_zero() else None,
                lower="lower per_device_train_batch_size and raise gradient_accumulation_steps",
            )  # fmt: skip


def adapted(model: nn.Module, sample: Inputs) -> Any:
    """Return the adapter; a model that reads no ids is tried on the sample."""
    try:
        return adapt(model)
    except UserError:
        if "input_ids" in sample:
            raise
        return adapt(model, example=without_columns(sample))


_SERVED = (None, "nll", "chunked_nll", "dft")
"""Values of TRL's ``loss_type`` that are functions of logits and labels, whatever history the logits are of."""


def loss_problems(trainer: Any) -> list[str]:
    """Return the options of a trainer's loss that are not known to be right on a method's history."""
    args, problems = trainer.args, list[str]()
    loss, smoothing = getattr(args, "loss_type", None), args.label_smoothing_factor
    if smoothing and (loss == "dft" or trainer.compute_loss_func is not None):
        what = "compute_loss_func" if trainer.compute_loss_func is not None else "loss_type='dft'"
        problems.append(
            f"label_smoothing_factor={smoothing:g} is not applied to {what}, neither by the trainer nor by a method: "
            "label_smoothing_factor=0"
        )
    if loss not in _SERVED:
        problems.append(
            f"loss_type={loss!r} is not known to depend on logits and labels alone: a method serves loss_type='nll' "
            "and 'dft'"
        )
    if getattr(args, "use_liger_kernel", False):
        problems.append(
            "use_liger_kernel=True is not tested with a method, which takes its loss from logits, where Liger's fused "
            "loss makes none: use_liger_kernel=False"
        )
    return problems


def place_problems(trainer: Any, method: Any) -> list[str]:
    """Return ways of spreading a model over devices under which a roll-in would hang, or see half a model."""
    args, problems = trainer.args, list[str]()
    if args.n_gpu > 1:
        problems.append(
            f"one process would drive {args.n_gpu} GPUs (nn.DataParallel), which copies the model for every forward: "
            "start one process per GPU (torchrun --nproc-per-node), or show it one (CUDA_VISIBLE_DEVICES=0)"
        )
    sharded = args.fsdp or getattr(trainer, "is_fsdp_enabled", False)
    if sharded and getattr(method, "calls_model", True):
        plugin = getattr(getattr(trainer.accelerator, "state", None), "fsdp_plugin", None)
        engine = getattr(method, "engine", "auto")
        if getattr(plugin, "fsdp_version", 1) != 2:
            problems.append(
                f"{method!r} under FSDP 1: processes that call the model a different number of times would wait for "
                "each other for ever: use FSDP 2 (fsdp_config={'version': 2}), whose roll-ins make equally many calls, "
                "or DDP (leave fsdp out)"
            )
        elif resolve_engine(engine).in_parts:
            problems.append(
                f"engine={engine!r} under FSDP: how often it calls the model, and parts of it, depends on the data, so "
                "that processes would wait for each other for ever: use engine='auto' or 'jacobi' (exact), or a number "
                "of passes"
            )
    if getattr(trainer, "is_deepspeed_enabled", False):
        problems.append("DeepSpeed is not supported with a method: use DDP (leave deepspeed out)")
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if any(getattr(parallel, f"{kind}_enabled", False) for kind in ("tp", "cp", "sp")):
        problems.append(
            "tensor, context and sequence parallelism are not supported with a method: use data parallelism"
        )
    return problems


def rehearse(method: Any, adapter: Any, batch: Batch, steps: int, key: int) -> None:
    """Refuse now what is refused at the lowest ratio that a run comes to, or cannot be divided token-exactly."""
    method, one, step, outcome = rehearsal(method, adapter, batch, steps, key)
    counts = float(outcome.count), float(loss_count(method, one, step, key))
    # a target may leave positions out, of which gold's are divided by
    if counts[0] != counts[1] and not (getattr(method, "target", "gold") != "gold" and counts[0] < counts[1]):
        raise UserError(
            f"{method!r}: its objective counts {counts[0]:g} where {counts[1]:g} positions (or their weights) count; a "
            "trainer divides by a count that is known before the forward: let the objective return it"
        )
