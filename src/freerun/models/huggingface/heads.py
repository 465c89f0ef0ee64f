"""A Hugging Face model in two halves: the trunk, and what the model's own last lines make of its output."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn


class WholeHead:
    """No halves: the hidden vectors are the logits."""

    def hidden(self, call: Callable[[], Any], *, whole: bool = False) -> tuple[Tensor, Any]:
        """Run a forward; its logits (rows, time, vocab) and its output."""
        output = call()
        return output.logits, output

    def logits(self, hidden: Tensor) -> Tensor:
        """The same."""
        return hidden

    def at(self, call: Callable[[], Any], index: Tensor) -> None:
        """None: all positions reach the vocabulary."""


class SplitHead:
    """The trunk and what the model's own forward makes of its output: scaling, head, bias, soft-capping.

    Both halves are the model's own code: the first is a forward whose head sees no position, the second a forward
    whose trunk is answered from memory. ``stub`` returns the arguments with which the model's forward reaches the trunk
    and needs nothing else of importance; a probe shows whether both halves together are the model.
    """

    def __init__(self, inner: Any, trunk: nn.Module, stub: Callable[[Tensor], dict[str, Any]]) -> None:
        self.inner = inner
        self.trunk = trunk
        self.stub = stub

    def hidden(self, call: Callable[[], Any], *, whole: bool = False) -> tuple[Tensor, Any]:
        """Run a forward; the trunk's output (rows, time, size), and the forward's, with logits if it is to be whole."""
        held: list[Tensor] = []
        hooks = [self.trunk.register_forward_hook(lambda _, __, out: held.append(out[0]))]
        head = self.inner.get_output_embeddings()
        if head is not None and not whole:
            hooks.append(head.register_forward_pre_hook(lambda _, args: (args[0][:, :0], *args[1:])))
        try:
            output = call()
        finally:
            for hook in hooks:
                hook.remove()
        return held[-1], output

    def at(self, call: Callable[[], Any], index: Tensor) -> tuple[Tensor, Tensor] | None:
        """Run a forward whose head sees these positions of the flattened batch ((n,)) alone.

        Returns:
            their logits (n, vocab), and the trunk's output (rows * time, size); None where a hook would see fewer
            positions, or the head is not a layer that is called once.
        """
        head = self.inner.get_output_embeddings()
        if head is None or any(is_watched(module) for module in (self.inner, *head.modules())):
            return None
        held: list[Tensor] = []
        seen: list[Tensor] = []

        def pick(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(arguments[0])
            return (arguments[0].flatten(0, 1).index_select(0, index)[None], *arguments[1:])

        hooks = [
            self.trunk.register_forward_hook(lambda _, __, out: held.append(out[0])),
            head.register_forward_pre_hook(pick),
        ]
        try:
            logits = call().logits
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) != 1 or logits.shape[:2] != (1, len(index)):
            return None
        return logits[0], held[-1].flatten(0, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., size) -> (..., vocab)."""
        shape = hidden.shape
        flat = hidden.reshape(1, -1, shape[-1])
        with _answering(self.trunk, flat):
            output = self.inner(**self.stub(flat), use_cache=False, return_dict=True)
        return output.logits.reshape(*shape[:-1], -1)


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module is compiled, or goes through somebody's hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or module._compiled_call_impl is not None


def answer(hidden: Tensor) -> Any:
    """Output of a trunk or an encoder that holds hidden vectors, and None for every other output."""
    return _answer_class()(last_hidden_state=hidden)


@cache
def _answer_class() -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Answer(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)

    return Answer


@contextmanager
def _answering(trunk: nn.Module, hidden: Tensor) -> Generator[None]:
    answered = answer(hidden)
    before = trunk.__dict__.get("forward")
    trunk.forward = lambda *_, **__: answered
    try:
        yield
    finally:
        if before is None:
            del trunk.forward
        else:
            trunk.forward = before
