"""A Transformer encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from freerun.errors import UserError
from freerun.models.transformer.blocks import Block, initialise, make_norm
from freerun.models.transformer.decoder import CausalTransformer, Positions, Seen
from freerun.models.transformer.shape import Shape
from freerun.types import Batch

__all__ = ["TransformerSeq2Seq"]


class _Encoder(nn.Module):
    def __init__(self, vocab: int, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, shape.size)
        self.positions = Positions(shape)
        self.blocks = nn.ModuleList(Block(shape, crossed=False) for _ in range(shape.layers))
        self.norm = make_norm(shape)
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, source: Tensor, mask: Tensor) -> Tensor:
        """(batch, source_time) ids and what is there of them -> (batch, source_time, size)."""
        self.positions.check(source.shape[1])
        # what is absent takes no position, on either side
        places = (mask.cumsum(1) - 1).clamp_min(0)
        x, turn = self.positions(self.embedding(source), places)
        x = self.drop(x)
        seen = None if bool(mask.all()) else mask[:, None, None]
        for block in self.blocks:
            x = block(x, turn, seen, causal=False)
        return self.norm(x)


class TransformerSeq2Seq(CausalTransformer):
    """A Transformer encoder-decoder; outputs are logits (batch, time, target_vocab).

    Layers of ``x + attend(norm(x))``, in the decoder causal and followed by attention to the encoded source, and
    ``x + feed_forward(norm(x))``; logits = U norm(x). The shift is inside: position t is fed ``history[:, t-1]``,
    position 0 a learned start vector. Stepped over its cache and in parallel it is the same function.

    Args:
        source_vocab: number of source symbols, the padding id 0 included.
        target_vocab: number of target symbols, the end symbol included.
        size: width of the stream, a multiple of ``heads``.
        layers: of encoder and decoder each.
        heads: number of attention heads.
        feed_forward: inner width; None: 4 * size, or 8/3 * size for ``"swiglu"``.
        positions: ``"rope"`` (rotary) or ``"learned"``.
        activation: ``"swiglu"``, ``"gelu"`` or ``"relu"``.
        norm: ``"rms"`` or ``"layer"``.
        bias: whether the linear layers have one.
        dropout: on embeddings and on what every sublayer adds, in [0, 1).
        tied: whether the output weights are the target embedding.
        longest: number of positions there are.

    Context of a batch: ``{"source": (batch, source_time) ids, "source_mask": (batch, source_time) bool}``, padding on
    either side: what is absent takes no position and is attended to by none.

    Raises:
        UserError: for arguments outside their range; all at once.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020 (pre-norm), arXiv:2002.04745.

    >>> import torch
    >>> model = TransformerSeq2Seq(5, 4, size=8, layers=1, heads=2)
    >>> ids = torch.tensor([[1, 2, 0]])
    >>> source = {"source": torch.tensor([[3, 4]]), "source_mask": torch.ones(1, 2, dtype=torch.bool)}
    >>> model(Batch(ids, ids, ids >= 0, source)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
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
        shape = Shape.of(settings, source_vocab=source_vocab, target_vocab=target_vocab)
        super().__init__(target_vocab, shape, crossed=True, tied=tied)
        self._settings = settings
        self.encoder = _Encoder(source_vocab, shape)
        initialise(self, layers)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as given."""
        return dict(self._settings)

    def encode(self, batch: Batch) -> Batch:
        """The batch with its source encoded; one that is encoded already is given back."""
        if isinstance(batch.context, Seen):
            return batch
        if not isinstance(batch.context, Mapping) or not {"source", "source_mask"} <= batch.context.keys():
            raise UserError(
                "TransformerSeq2Seq needs Batch.context = {'source': (batch, source_time) ids, 'source_mask': the same "
                f"shape, bool}}; got {type(batch.context).__name__}"
            )
        mask = batch.context["source_mask"]
        if mask.dtype != torch.bool or mask.shape != batch.context["source"].shape:
            raise UserError(
                f"source_mask must be bool and of the source's shape {tuple(batch.context['source'].shape)}; got "
                f"{tuple(mask.shape)} {mask.dtype}: use source_mask.bool()"
            )
        # a source that is not there at all: its padding stands in, as attention to nothing has no value
        mask = mask | ~mask.any(1, keepdim=True)
        memory = self.encoder(batch.context["source"], mask)
        return batch.made(context=Seen(memory, None if bool(mask.all()) else mask))

    def _seen(self, batch: Batch) -> Seen:
        return self.encode(batch).context
