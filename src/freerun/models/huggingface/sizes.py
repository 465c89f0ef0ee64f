"""How many ids and positions a model has."""

from __future__ import annotations

from typing import Any

from torch import nn

from freerun.errors import UserError

__all__ = ["configured_positions", "positions", "table_of"]

_DECODER = ("max_position_embeddings", "max_target_positions", "max_decoder_position_embeddings")
_ENCODER = ("max_position_embeddings", "max_encoder_position_embeddings")
_SWITCHING = ("longrope", "dynamic")
"""Rotations that change for a whole call once it is longer than the model was first trained for: what a cache holds is
then rotated otherwise, and rows hang on each other."""


def table_of(part: Any) -> Any:
    """The table that a model, or its decoder, looks ids up in.

    Raises:
        UserError: there is none, or there are several.
    """
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
