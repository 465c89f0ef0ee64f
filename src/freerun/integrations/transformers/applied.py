"""A method at work in a trainer: its windows, its batches, its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from freerun.errors import UserError
from freerun.integrations.transformers import losses, preflight
from freerun.integrations.transformers.adapt import adapt
from freerun.integrations.transformers.normalising import (
    AccumulationWindow,
    Ranks,
    collated_batch,
    counted,
    learns,
    opened,
)
from freerun.integrations.transformers.told import Told
from freerun.keys import fold
from freerun.types import Batch, Step

__all__ = ["Applied", "adapted"]

Inputs = Mapping[str, Any]


class Applied:
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
        if loss_from == "trainer" and (problems := losses.swap_problems(method)):
            raise UserError(problems)
        names = dict.fromkeys(("teacher_forcing_ratio", *(name for name, _ in getattr(method, "scheduled", tuple)())))
        self.told = Told(tuple(names))
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
        self._window = opened(counts, sizes, self._micro_batch_size(), self._ranks())
        return self._window.count

    def loss(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The next micro-batch's share of the step's mean loss, and its logits aligned with the targets."""
        adapter, window = self.adapter(model), self._current(model, inputs)
        rows = window.rows(inputs["labels"])
        if not learns(adapter, inputs):
            # every parameter takes part, with a gradient of 0
            logits = model(
                **{name: value for name, value in self.whole(model, inputs).items() if name != "labels"}
            ).logits
            return logits[torch.zeros_like(logits, dtype=torch.bool)].sum(), logits
        with self.trainer.accelerator.autocast():
            outcome = self.method.run(adapter, collated_batch(adapter, inputs, rows), self._step(), self._key())
        self.told.add(outcome.report)
        return window.loss(outcome.total), outcome.outputs

    def swapped(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """The next micro-batch as the model's own forward takes it, with the ids that the method feeds."""
        adapter, window = self.adapter(model), self._current(model, inputs)
        rows = window.rows(inputs["labels"])
        if not learns(adapter, inputs):
            return self.whole(model, inputs)
        batch: Batch = collated_batch(adapter, inputs, rows)
        with self.trainer.accelerator.autocast():
            fed, report = losses.swap(self.method, adapter, batch, self._step(), self._key())
        self.told.add(report)
        return adapter.inputs(fed)

    def whole(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """A batch as the model's own forward takes it, on gold; a decoder's ids are said: labels may be popped."""
        given = {name: value for name, value in inputs.items() if name != "replaceable"}
        adapter = self.adapter(model)
        if adapter.is_encoder_decoder and given.get("decoder_input_ids") is None and given.get("labels") is not None:
            given["decoder_input_ids"] = adapter.shifted(given["labels"], len(given["labels"]))
        return given

    def drained(self) -> dict[str, float]:
        """What a line of the log says of the micro-batches since the last; asked on all ranks at once."""
        return self.told.drained(self.trainer.accelerator.gather, self.trainer.args.device)

    def _smoothed(self) -> Any:
        if self.loss_from == "trainer":
            return self._given
        return losses.smoothed(self._given, self.trainer.args.label_smoothing_factor)

    def _current(self, model: nn.Module, inputs: Inputs) -> AccumulationWindow:
        if self._window is None or self._window.over:
            # asked by hand: a window of this batch alone
            count = self._counted(self.adapter(model), inputs)
            return opened([count], [len(inputs["labels"])], 1, Ranks(0, 1, lambda x: x))
        return self._window

    def _counted(self, adapter: Any, sample: Inputs) -> Tensor:
        if not learns(adapter, sample):
            return sample["labels"].new_zeros(())
        return counted(self.method, collated_batch(adapter, sample), self._step())

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
        problems = preflight.place_problems(trainer, method) + preflight.tokenizer_problems(trainer, adapter.inner)
        problems += preflight.data_problems(samples)
        if not any(parameter.requires_grad for parameter in adapter.parameters()):
            problems.append("no parameter of the model requires a gradient: unfreeze some, or add an adapter (LoRA)")
        try:
            method.check(trainer.state.max_steps)
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)
        # where none learns anything, making the batch says why
        batch = collated_batch(adapter, next((each for each in samples if learns(adapter, each)), samples[0]))
        # on the model within: processes need not wait for each other, and nothing is compiled for one row
        preflight.rehearse(method, adapt(adapter.inner), batch, trainer.state.max_steps, self._key())


def adapted(model: nn.Module, sample: Inputs) -> Any:
    """The adapter; a model that reads no ids is tried on the sample."""
    try:
        return adapt(model)
    except UserError:
        if "input_ids" in sample:
            raise
        return adapt(model, example={name: value for name, value in sample.items() if name != "replaceable"})
