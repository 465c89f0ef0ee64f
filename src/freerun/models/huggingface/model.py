"""A Hugging Face model as a Model: from a Batch to logits, aligned, in one forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models.huggingface.context import SourceContext, context_of

_DECODER = ("max_position_embeddings", "max_target_positions", "max_decoder_position_embeddings")


_ENCODER = ("max_position_embeddings", "max_encoder_position_embeddings")


_SWITCHING = ("longrope", "dynamic")
"""Rotations that change for a whole call once it is longer than the model was first trained for: what a cache holds is
then rotated otherwise, and rows hang on each other."""


def table_of(part: Any) -> Any:
    """The table that a model, or its decoder, looks ids up in."""
    try:
        table = part.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = getattr(part, "embed_tokens", None)
    if getattr(table, "weight", None) is None:
        raise UserError(
            f"{type(part).__name__} has no single table of embeddings: several streams of ids (codebooks) are not "
            "supported"
        )
    return table


def positions(part: Any, *, encoder: bool = False) -> int | None:
    """Tokens that a model can place; None: as many as one likes."""
    said = configured_positions(part.config, encoder=encoder)
    # a table that begins behind the padding's place
    limits = [] if said is None else [said]
    limits += [
        table.num_embeddings - table.padding_idx - 1
        for name, table in part.named_modules()
        if isinstance(table, nn.Embedding) and "position" in name and table.padding_idx is not None
    ]
    return min(limits) if limits else None


def configured_positions(config: Any, *, encoder: bool = False) -> int | None:
    """What a configuration says of them."""
    config = config if encoder else config.get_text_config(decoder=True)
    if getattr(config, "alibi", False):
        return None
    found = [getattr(config, name, None) for name in (_ENCODER if encoder else _DECODER)]
    found += [
        rope.get("original_max_position_embeddings") for rope in _ropes(config) if rope.get("rope_type") in _SWITCHING
    ]
    return min((number for number in found if isinstance(number, int) and number > 0), default=None)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """What is said of rotations, for all layers or for each kind of them."""
    said = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    ropes = [part for part in said if isinstance(part, dict)]
    return ropes + [inner for part in ropes for inner in part.values() if isinstance(inner, dict)]


class WholeHead:
    """No halves: the hidden vectors are the logits."""

    def hidden(self, call: Callable[[], Any]) -> tuple[Tensor, Any]:
        """Run a forward; its logits (rows, time, vocab) and its output."""
        output = call()
        return output.logits, output

    def logits(self, hidden: Tensor) -> Tensor:
        """The same."""
        return hidden


class SplitHead:
    """The trunk and what the model's own forward makes of its output: scaling, head, bias, soft-capping.

    Both halves are the model's own code: the first is a forward whose head sees a single position, the second a forward
    whose trunk is answered from memory. Nothing is known of it beforehand; whether it is the same, a probe says.

    Args:
        inner: the model.
        trunk: the part whose first output are the hidden vectors.
        size: width of the hidden vectors.
        stub: arguments with which the model's forward reaches the trunk and asks nothing else of importance.
    """

    def __init__(self, inner: Any, trunk: nn.Module, stub: Callable[[Tensor], dict[str, Any]]) -> None:
        self.inner = inner
        self.trunk = trunk
        self.stub = stub

    def hidden(self, call: Callable[[], Any]) -> tuple[Tensor, Any]:
        """Run a forward; the trunk's output (rows, time, size), and the forward's with logits of one position."""
        held: list[Tensor] = []
        hooks = [self.trunk.register_forward_hook(lambda _, __, out: held.append(out[0]))]
        head = self.inner.get_output_embeddings()
        if head is not None:
            hooks.append(head.register_forward_pre_hook(lambda _, args: (args[0][:, :1], *args[1:])))
        try:
            output = call()
        finally:
            for hook in hooks:
                hook.remove()
        return held[-1], output

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab)."""
        shape = hidden.shape
        flat = hidden.reshape(1, -1, shape[-1])
        with _answering(self.trunk, flat):
            output = self.inner(**self.stub(flat), use_cache=False, return_dict=True)
        return output.logits.reshape(*shape[:-1], -1)


@contextmanager
def _answering(trunk: nn.Module, hidden: Tensor) -> Generator[None]:
    answer = _answer(hidden)
    before = trunk.__dict__.get("forward")
    trunk.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        if before is None:
            del trunk.forward
        else:
            trunk.forward = before


def _answer(hidden: Tensor) -> Any:
    """A trunk's output that holds the hidden vectors, and None for everything else it is asked for."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Answer(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)

    return Answer(last_hidden_state=hidden)  # pyright: ignore[reportArgumentType]


class HuggingFaceModel(nn.Module):
    """What causal and encoder-decoder models have in common.

    Args:
        model: as given, wrapped or not: what is differentiated goes through it.
        inner: the ``PreTrainedModel`` within: everything without gradient goes through it.

    Not made by hand: ``freerun.hf.adapt`` finds out what a model can do.
    """

    kind: ClassVar[str] = "huggingface"  # in model.json; its settings are in files of its own
    is_encoder_decoder: bool
    findings: tuple[Any, ...] = ()

    def __init__(self, model: nn.Module, inner: Any) -> None:
        super().__init__()
        self.model = model
        # the model holds it already: registered once, its weights have one name
        object.__setattr__(self, "_inner", inner)
        self._halves: SplitHead | WholeHead = WholeHead()
        self._limit = positions(inner)
        self._accepted = frozenset(inspect.signature(type(inner).forward).parameters)

    @property
    def inner(self) -> Any:
        """The ``PreTrainedModel`` itself."""
        return self._inner

    @property
    def limit(self) -> int | None:
        """Positions that the model has; None: as many as one likes."""
        return self._limit

    @property
    def target_vocab(self) -> int:
        """Ids that may be fed."""
        return self._embeddings().weight.shape[0]

    def _embeddings(self) -> Any:
        return table_of(self.inner)

    def accepts(self, name: str) -> bool:
        """Whether the model's forward has an argument of that name."""
        return name in self._accepted

    # -- the whole sequence at once

    def forward(self, batch: Batch) -> Tensor:
        """(rows, time, vocab) logits: position t predicts ``targets[:, t]``."""
        return self._forward(batch).logits

    def hidden(self, batch: Batch) -> Tensor:
        """(rows, time, size): what the vocabulary is read from."""
        return self._halves.hidden(lambda: self._forward(batch))[0]

    def head(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab) logits, by the model's own last lines."""
        return self._halves.logits(hidden)

    def _forward(self, batch: Batch, vectors: Tensor | None = None) -> Any:
        context = context_of(batch)
        self.refuse_longer(batch.time)
        # a wrapper has to see what is differentiated; what is not must not wait for other processes
        model = self.model if torch.is_grad_enabled() else self.inner
        given = self.arguments(context, batch.history[:, :-1], vectors)
        return model(**given, use_cache=False, return_dict=True)

    def arguments(self, context: SourceContext, history: Tensor, vectors: Tensor | None = None) -> dict[str, Any]:
        """Of the forward that reads the first entry and then the history (or its vectors)."""
        raise TypeError(f"{type(self).__name__} must say how it is called")  # a subclass forgot to

    def refuse_longer(self, time: int) -> None:
        """Refuse a row of more tokens than the model has positions."""
        if self.limit is not None and time > self.limit:
            raise UserError(
                f"a row has {time} tokens to read, and the model has {self.limit} positions "
                "(config.max_position_embeddings): cut prompts and completions (max_length of the tokenizer)"
            )


class EmbeddingInputs(HuggingFaceModel):
    """A model that can be told vectors: ``freerun.types.Embedder``."""

    def lookup(self, entries: Tensor) -> Tensor:
        """(...) ids -> (..., size), as the model itself looks them up, its scaling included."""
        return self._embeddings()(entries)

    def outputs_from(self, batch: Batch, vectors: Tensor) -> Tensor:
        """``forward`` with (rows, time, size) vectors in place of the embedded history."""
        return self._forward(batch, vectors).logits


def ones(like: Tensor, *shape: int) -> Tensor:
    """A mask of ones on a tensor's device."""
    return torch.ones(shape, dtype=torch.int64, device=like.device)
