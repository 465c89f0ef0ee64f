"""The model within what others have put around it."""

from __future__ import annotations

from typing import Any

from torch import nn

from freerun.errors import UserError

__all__ = ["unwrapped"]


def unwrapped(model: nn.Module) -> Any:
    """The ``PreTrainedModel`` within DDP, ``torch.compile``, PEFT and their like, in any order.

    Raises:
        UserError: there is none, or prompts of PEFT stand before the model, which histories know nothing of.
    """
    from transformers import PreTrainedModel

    inner: Any = model
    for _ in range(10):
        if isinstance(inner, PreTrainedModel):
            return inner
        if getattr(inner, "peft_config", None):
            _refuse_prompts(inner)
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            break
    raise UserError(
        "hf.adapt takes a transformers PreTrainedModel, or one within DDP, torch.compile or PEFT; got "
        f"{type(model).__name__}. A model of your own needs no adapting: any callable from a Batch to outputs will do"
    )


def _refuse_prompts(model: Any) -> None:
    for name, config in model.peft_config.items():
        if config.is_prompt_learning:
            raise UserError(
                f"the PEFT adapter {name!r} ({type(config).__name__}) puts learnt vectors before every sequence, which "
                "a history rolled in without them would not see: use LoRA or another adapter that changes weights"
            )
