"""What an encoder, or a tower beside a decoder, reads: made up by the name of a model's main input."""

from typing import Any

import torch
from torch import Tensor

from family_configs import ORDINARY

SOURCE = 6


def source_of(model: Any, rows: int, padding: str) -> dict[str, Tensor]:
    """The encoder's arguments for so many rows."""
    name = getattr(model.get_encoder(), "main_input_name", model.main_input_name)
    g = torch.Generator().manual_seed(7)
    if name == "input_ids":
        ids = torch.randint(ORDINARY.start, ORDINARY.stop, (rows, SOURCE), generator=g)
        lengths = torch.tensor([SOURCE, 2, 5, 3])[:rows, None]
        mask = (torch.arange(SOURCE) < lengths).long()
        if padding == "left":
            mask = mask.flip(1)
        boxes = torch.randint(0, 8, (rows, SOURCE, 4), generator=g).sort(-1).values / 8
        more = {"bbox": boxes.to(model.dtype)} if type(model).__name__.startswith("Udop") else {}
        return {"input_ids": ids * mask, "attention_mask": mask, **more}
    shape = _SHAPES[name](model)
    made = torch.randn(rows, *shape, generator=g, dtype=torch.float64).to(model.dtype)
    return {name: made.abs() if name == "flattened_patches" else made}  # the first two are a line and a column


def _features(model: Any) -> tuple[int, ...]:
    c = model.config
    if hasattr(c, "num_mel_bins"):
        return (c.num_mel_bins, 2 * c.max_source_positions)
    return (32, getattr(c, "feature_projection_input_dim", getattr(c, "input_feat_per_channel", 80)))


def _image(model: Any) -> tuple[int, ...]:
    c = model.config
    vision = getattr(c, "vision_config", None) or getattr(c, "encoder", c)
    size = getattr(vision, "image_size", 16)
    return (3, size, size) if isinstance(size, int) else (3, *size)


_SHAPES: dict[str, Any] = {
    "input_features": _features,
    "input_values": lambda model: (1600,),
    "pixel_values": _image,
    "flattened_patches": lambda model: (8, model.config.vision_config.patch_embed_hidden_size + 2),
}


def extras(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """``example=`` for a model whose input cannot be made up."""
    return {} if "input_ids" in inputs and "bbox" not in inputs else {"example": inputs}
