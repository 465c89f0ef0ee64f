"""What is refused before the first step: settings, data and models under which a method could not do what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.integrations import hf_loss
from freerun.integrations.hf_adapt import adapt
from freerun.integrations.hf_loss import AccumulationWindow, Ranks, collated_batch, has_targets, loss_count, open_window
from freerun.keys import fold
from freerun.methods.base import rehearsal
from freerun.methods.report import StepStats
from freerun.rollin import resolve_engine
from freerun.types import Step

Inputs = Mapping[str, Any]


class MethodRunner:
    """What a trainer asks of a method.

    Args:
        trainer: a ``transformers.Trainer``.
        method: of freerun.
        loss_from: ``"method"`` or ``"trainer"``.

    Raises:
        UserError: method and trainer contradict each other.
    """

    def __init__(self, trainer: Any, method: Any, loss_from: str) -> None:
        self.trainer = trainer
        self.loss_from = loss_from
        self._given = method
        self.method = self._smoothed()
        if loss_from == "trainer" and (problems := hf_loss.swap_problems(method)):
            raise UserError(problems)
        names = dict.fromkeys(("teacher_forcing_ratio", *(name for name, _ in getattr(method, "scheduled", tuple)())))
        self._stats = StepStats(tuple(names))
        self._window: AccumulationWindow | None = None
        self._adapter: Any = None
        self._checked: Any = None
        if getattr(trainer.model, "main_input_name", "input_ids") == "input_ids":
            # tried as it is: later it may run in half precision, where small differences say nothing
            adapt(trainer.model)

    def adapter(self, model: nn.Module, sample: Inputs | None = None) -> Any:
        """The model as the trainer has wrapped it, as a Model; ``sample`` is tried where none can be made up."""
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
            self._checked = self.trainer.state
        elif self._window is not None and not self._window.micro:
            raise UserError(
                f"the compute_loss of {type(self.trainer).__name__} never called super().compute_loss: the method had "
                "no part in the last optimizer step. Call it, and change its loss; or let the class come after "
                "freerun.hf.MethodMixin (class Mine(hf.MethodMixin, YourTrainer)): its loss is taken on swapped ids"
            )
        counts = [self._counted(adapter, sample).to(device) for sample in samples]
        sizes = [len(sample["labels"]) for sample in samples]
        self._window = open_window(counts, sizes, self._micro_batch_size(), self._ranks())
        return self._window.count

    def loss(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The next micro-batch's share of the step's mean loss, and its logits aligned with the targets."""
        adapter, window = self.adapter(model), self._current(model, inputs)
        rows = window.rows(inputs["labels"])
        if not has_targets(adapter, inputs):
            # every parameter takes part, with a gradient of 0
            logits = model(
                **{name: value for name, value in self.plain_inputs(model, inputs).items() if name != "labels"}
            ).logits
            return logits[torch.zeros_like(logits, dtype=torch.bool)].sum(), logits
        with self.trainer.accelerator.autocast():
            outcome = self.method.run(adapter, collated_batch(adapter, inputs, rows), self._step(), self._key())
        self._stats.add(outcome.report)
        return window.loss(outcome.total), outcome.outputs

    def mixed_inputs(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """The next micro-batch as the model's own forward takes it, with the ids that the method feeds."""
        adapter, window = self.adapter(model), self._current(model, inputs)
        rows = window.rows(inputs["labels"])
        if not has_targets(adapter, inputs):
            return self.plain_inputs(model, inputs)
        batch: Batch = collated_batch(adapter, inputs, rows)
        with self.trainer.accelerator.autocast():
            fed, report = hf_loss.swap(self.method, adapter, batch, self._step(), self._key())
        self._stats.add(report)
        return adapter.inputs(fed)

    def plain_inputs(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """A batch as the model's own forward takes it, on gold; a decoder's ids are said: labels may be popped."""
        given = {name: value for name, value in inputs.items() if name != "replaceable"}
        adapter = self.adapter(model)
        if adapter.is_encoder_decoder and given.get("decoder_input_ids") is None and given.get("labels") is not None:
            given["decoder_input_ids"] = adapter.shifted(given["labels"], len(given["labels"]))
        return given

    def pop_log(self) -> dict[str, float]:
        """Return a log line's numbers of the micro-batches since the last, over all ranks; all have to call it."""
        stats, self._stats = self._stats, StepStats(self._stats.names)
        gathered = self.trainer.accelerator.gather(torch.tensor([stats.sums()], device=self.trainer.args.device))
        summed = stats.with_sums(gathered.sum(0).tolist())
        return summed.numbers() if summed.micro_batches else {}

    def _smoothed(self) -> Any:
        if self.loss_from == "trainer":
            return self._given
        return hf_loss.smoothed(self._given, self.trainer.args.label_smoothing_factor)

    def _current(self, model: nn.Module, inputs: Inputs) -> AccumulationWindow:
        if self._window is None or self._window.over:
            # asked by hand: a window of this batch alone
            count = self._counted(self.adapter(model), inputs)
            return open_window([count], [len(inputs["labels"])], 1, Ranks(0, 1, lambda x: x))
        return self._window

    def _counted(self, adapter: Any, sample: Inputs) -> Tensor:
        if not has_targets(adapter, sample):
            return sample["labels"].new_zeros(())
        return loss_count(self.method, collated_batch(adapter, sample), self._step())

    def _key(self) -> int:
        return fold(self.trainer.args.seed, "train")

    def _step(self) -> int:
        step, world = self.trainer.state.global_step, self.trainer.accelerator.num_processes
        samples = step * self.trainer.args.gradient_accumulation_steps * world * self._micro_batch_size()
        return Step(step, sample=samples, epoch=self.trainer.state.epoch or 0.0)

    def _micro_batch_size(self) -> int:
        args, world = self.trainer.args, self.trainer.accelerator.num_processes
        return max(1, args.train_batch_size // (world if args.accelerator_config.split_batches else 1))

    def _ranks(self) -> Ranks:
        accelerator = self.trainer.accelerator
        share = bool(self.trainer.args.average_tokens_across_devices)
        return Ranks(accelerator.process_index, accelerator.num_processes, accelerator.gather, share)

    def _check(self, adapter: Any, samples: list[Inputs]) -> None:
        """Refuse what cannot go well, before the first step of a call of ``train``."""
        trainer, method = self.trainer, self.method
        problems = place_problems(trainer, method) + tokenizer_problems(trainer, adapter.inner)
        problems += data_problems(samples)
        if not any(parameter.requires_grad for parameter in adapter.parameters()):
            problems.append("no parameter of the model requires a gradient: unfreeze some, or add an adapter (LoRA)")
        try:
            method.check(trainer.state.max_steps)
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)
        # where none learns anything, making the batch says why
        batch = collated_batch(adapter, next((each for each in samples if has_targets(adapter, each)), samples[0]))
        # on the model within: processes need not wait for each other, and nothing is compiled for one row
        rehearse(method, adapt(adapter.inner), batch, trainer.state.max_steps, self._key())


def adapted(model: nn.Module, sample: Inputs) -> Any:
    """The adapter; a model that reads no ids is tried on the sample."""
    try:
        return adapt(model)
    except UserError:
        if "input_ids" in sample:
            raise
        return adapt(model, example={name: value for name, value in sample.items() if name != "replaceable"})


def place_problems(trainer: Any, method: Any) -> list[str]:
    """Ways of spreading a model over devices under which a roll-in would hang, or see half a model."""
    args, found = trainer.args, list[str]()
    if args.n_gpu > 1:
        found.append(
            f"one process would drive {args.n_gpu} GPUs (nn.DataParallel), which copies the model for every forward: "
            "start one process per GPU (torchrun --nproc-per-node), or show it one (CUDA_VISIBLE_DEVICES=0)"
        )
    if args.fsdp or getattr(trainer, "is_fsdp_enabled", False):
        found += _sharding_problems(trainer, method)
    if getattr(trainer, "is_deepspeed_enabled", False):
        found.append("DeepSpeed is not supported with a method: use DDP (leave deepspeed out)")
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if any(getattr(parallel, f"{kind}_enabled", False) for kind in ("tp", "cp", "sp")):
        found.append("tensor, context and sequence parallelism are not supported with a method: use data parallelism")
    return found


def _sharding_problems(trainer: Any, method: Any) -> list[str]:
    if not getattr(method, "calls_model", True):
        return []
    plugin = getattr(getattr(trainer.accelerator, "state", None), "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 1) != 2:
        return [
            f"{method!r} under FSDP 1: processes that call the model a different number of times would wait for each "
            "other for ever: use FSDP 2 (fsdp_config={'version': 2}), whose roll-ins make equally many calls, or DDP "
            "(leave fsdp out)"
        ]
    engine = resolve_engine(getattr(method, "engine", "auto"))
    if engine.in_parts:
        return [
            f"engine={getattr(method, 'engine', engine)!r} under FSDP: how often it calls the model, and parts of it, "
            "depends on the data, so that processes would wait for each other for ever: use engine='auto' or 'jacobi' "
            "(exact), or a number of passes"
        ]
    return []


def tokenizer_problems(trainer: Any, inner: Any) -> list[str]:
    """A tokenizer that is not the model's, or that cannot pad."""
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    found: list[str] = []
    if tokenizer is not None and hasattr(tokenizer, "__len__"):
        known = inner.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            found.append(
                f"the tokenizer has {len(tokenizer)} symbols and the model {known}: take the model's own tokenizer, or "
                "model.resize_token_embeddings(len(tokenizer))"
            )
    padding = getattr(trainer.data_collator, "tokenizer", None)
    if padding is not None and getattr(padding, "pad_token", "") is None:
        found.append(
            "the collator's tokenizer has no pad token, so that rows of different length cannot be made one batch: "
            "tokenizer.pad_token = tokenizer.eos_token (labels of padding are -100, so nothing is learnt from it)"
        )
    return found


def data_problems(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing to learn in the first optimizer step."""
    if any(sample.get("labels") is None for sample in samples):
        return [
            f"a batch has no labels; it has {', '.join(samples[0])}: let the collator make them "
            "(DataCollatorForSeq2Seq, DataCollatorForLanguageModeling(mlm=False))"
        ]
    if not any(bool((sample["labels"] != -100).any()) for sample in samples):
        return [
            "no token of the first optimizer step is to be learnt: all labels are -100; was the completion cut off "
            "with the prompt at max_length, or was everything masked as prompt?"
        ]
    return []


def rehearse(method: Any, adapter: Any, batch: Batch, steps: int, key: int) -> None:
    """What is refused at the lowest ratio that a run comes to, or cannot be divided token-exactly, is refused now."""
    method, one, step, outcome = rehearsal(method, adapter, batch, steps, key)
    counts = float(outcome.count), float(loss_count(method, one, step))
    if counts[0] != counts[1]:
        raise UserError(
            f"{method!r}: its objective counts {counts[0]:g} where {counts[1]:g} positions (or their weights) count; a "
            "trainer divides by a count that is known before the forward: let the objective return it"
        )
