"""The section ``[model]`` of kind "huggingface"."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from freerun.errors import UserError

__all__ = ["HuggingFaceSettings"]


@dataclass(frozen=True)
class HuggingFaceSettings:
    """Any encoder-decoder or causal model over text of the library transformers, ``freerun.hf.adapt``.

    Args:
        path: a folder that ``save_pretrained`` wrote, such as the ``model`` folder of a run, or a name on the hub.
        tokenizer: another folder or name for the tokenizer (None: the model's own).
        random: fresh weights of the model's configuration instead of those saved.
        dtype: of the weights; "auto" is that in which they were saved.
        pad: the pad symbol, for a tokenizer that has none: "eos", or another symbol of it.
        chat_template: file of a chat template (Jinja) in place of the tokenizer's own.
    """

    trial: ClassVar[tuple[int, ...]] = ()
    kind: Literal["huggingface"] = "huggingface"
    path: str | None = None
    tokenizer: str | None = None
    random: bool = False
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    pad: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError(
                "`path` is missing: the folder of a model, or its name on the hub"
                '\n  help: give it with --set model.path=FOLDER, or write path = "FOLDER" under [model]'
            )

    def __str__(self) -> str:
        return f"huggingface, {self.path}{', fresh weights' if self.random else ''}"

    def pretrained(self) -> Any:
        """The same for what loads it."""
        from freerun.training.pretrained import Pretrained

        return Pretrained(**{each.name: getattr(self, each.name) for each in fields(self) if each.name != "kind"})
