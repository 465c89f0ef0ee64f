"""A model in two halves: up to the hidden vectors its vocabulary is read from, and from there to the logits."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["Halves", "Whole"]


class Whole:
    """No halves: the hidden vectors are the logits."""

    def hidden(self, call: Callable[[], Any]) -> tuple[Tensor, Any]:
        """Run a forward; its logits (rows, time, vocab) and its output."""
        output = call()
        return output.logits, output

    def logits(self, hidden: Tensor) -> Tensor:
        """The same."""
        return hidden


class Halves:
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
