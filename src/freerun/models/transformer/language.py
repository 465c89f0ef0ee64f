"""A decoder-only Transformer: a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freerun.errors import UserError
from freerun.models.transformer.blocks import initialise
from freerun.models.transformer.cache import Absent
from freerun.models.transformer.decoder import CausalTransformer, Seen
from freerun.models.transformer.shape import Shape
from freerun.types import Batch

__all__ = ["TransformerLM"]


class TransformerLM(CausalTransformer):
    """A decoder-only Transformer; outputs are logits (batch, time, vocab).

    ``x_0 = s, x_t = E y_{t-1}``, then layers of ``x + attend(norm(x))`` and ``x + feed_forward(norm(x))`` with causal
    attention, logits = U norm(x). The shift is inside: position t is fed ``history[:, t-1]``, position 0 a learned
    start vector. Stepped over its cache and in parallel it is the same function.

    Args:
        vocab: number of symbols.
        size: width of the stream, a multiple of ``heads``.
        layers: number of layers.
        heads: number of attention heads.
        feed_forward: inner width; None: 4 * size, or 8/3 * size for ``"swiglu"``.
        positions: ``"rope"`` (rotary) or ``"learned"``.
        activation: ``"swiglu"``, ``"gelu"`` or ``"relu"``.
        norm: ``"rms"`` or ``"layer"``.
        bias: whether the linear layers have one.
        dropout: on embeddings and on what every sublayer adds, in [0, 1).
        tied: whether the output weights are the embedding.
        longest: number of positions there are.

    Context of a batch: None, or ``{"present": (batch, n) bool}`` where the first n history entries may be absent
    (False): left padding before a prompt. Absent entries take no position and are attended to by none. Prompts lie
    in ``history`` with ``eligible`` and ``mask`` False; padding on the right needs nothing.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; Su et al. 2021, arXiv:2104.09864.

    What it is not: a model to be trained at scale; there is no attention dropout, no grouped-query attention.

    >>> import torch
    >>> model = TransformerLM(5, size=8, layers=1, heads=2)
    >>> ids = torch.tensor([[1, 2, 0]])
    >>> model(Batch(ids, ids, ids >= 0)).shape
    torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        vocab: int,
        *,
        size: int = 128,
        layers: int = 4,
        heads: int = 4,
        feed_forward: int | None = None,
        positions: str = "rope",
        activation: str = "swiglu",
        norm: str = "rms",
        bias: bool = False,
        dropout: float = 0.0,
        tied: bool = True,
        longest: int = 1024,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(vocab, Shape.of(settings, vocab=vocab), crossed=False, tied=tied)
        self._settings = settings
        initialise(self, layers)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as given."""
        return dict(self._settings)

    def _seen(self, batch: Batch) -> Seen:
        context = batch.context
        if context is None:
            return Seen()
        if not isinstance(context, Mapping) or set(context) != {"present"}:
            got = ", ".join(map(repr, context)) if isinstance(context, Mapping) else type(context).__name__
            raise UserError(
                "TransformerLM needs Batch.context = None, or {'present': (batch, n) bool} with False for left "
                f"padding; got {got}"
            )
        return Seen(absent=Absent.of(context["present"], batch.size))
