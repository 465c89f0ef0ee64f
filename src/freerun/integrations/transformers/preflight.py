"""What is refused before the first step: settings, data and models under which a method could not do what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freerun.errors import UserError
from freerun.integrations.transformers.normalising import counted
from freerun.methods.rehearsal import rehearsal
from freerun.rollin import Draft, Window
from freerun.rollin.engines import resolve
from freerun.types import Batch

__all__ = ["data_problems", "place_problems", "rehearse", "tokenizer_problems"]


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
    if not getattr(method, "asks_model", True):
        return []
    plugin = getattr(getattr(trainer.accelerator, "state", None), "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 1) != 2:
        return [
            f"{method!r} under FSDP 1: processes that call the model a different number of times would wait for each "
            "other for ever: use FSDP 2 (fsdp_config={'version': 2}), whose roll-ins make equally many calls, or DDP "
            "(leave fsdp out)"
        ]
    engine = resolve(getattr(method, "engine", "auto"))
    if engine == "step" or isinstance(engine, Window | Draft):
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
    """What is refused at the lowest ratio that a run comes to, or cannot be divided token-exactly, is refused now.

    Raises:
        UserError: the model cannot do what the method asks, or the loss cannot be divided token-exactly.
    """
    method, one, step, outcome = rehearsal(method, adapter, batch, steps, key)
    counts = float(outcome.count), float(counted(method, one, step))
    if counts[0] != counts[1]:
        raise UserError(
            f"{method!r}: its objective counts {counts[0]:g} where {counts[1]:g} positions (or their weights) count; a "
            "trainer divides by a count that is known before the forward: let the objective return it"
        )
