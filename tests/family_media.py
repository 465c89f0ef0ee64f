"""Images or sound for a class that reads them beside ids: made up by the names of what its forward takes."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from families import COMPLETIONS, PROMPTS
from family_configs import ORDINARY
from oracles_hf import NUMBERS, Row, causal_rows

COUNTS = {"image": (2, 1, 0, 2), "audio": (1, 1, 0, 1)}
"""Images of each row."""

Part = dict[str, Tensor]


class UnfitError(Exception):
    """No images that a class would take could be made up; why."""


@dataclass(frozen=True)
class Media:
    """Items of four rows: each item's own arguments, and how many tokens stand for it.

    Args:
        model: whose type numbers have.
        token: the id that stands for them; None: they are beside the ids, and attended to.
        items: arguments of each item, with a first dimension that items are joined along.
        lengths: tokens of each.
        counts: items of each row.
        modality: images, or sound.
        padded: items lie (rows, most of a row, ...) and not one after another.
        by_token: from ids (rows, time) and the rows' counts to further arguments.
    """

    model: Any
    token: int | None
    items: list[Part]
    lengths: list[int]
    counts: tuple[int, ...]
    padded: bool = False
    modality: str = "images"
    by_token: Callable[[Tensor, tuple[int, ...]], Part] = lambda ids, counts: {}

    def texts(self) -> list[Tensor]:
        """Prompt and completion of four rows, the tokens of items in their prompts."""
        g, lengths = torch.Generator().manual_seed(5), iter(self.lengths)

        def some(number: int) -> Tensor:
            return torch.randint(ORDINARY.start, ORDINARY.stop, (number,), generator=g)

        made: list[Tensor] = []
        for prompt, completion, count in zip(PROMPTS, COMPLETIONS, self.counts, strict=True):
            parts = [some(1)]
            for _ in range(count):
                length = next(lengths)
                if self.token is not None:
                    parts += [*self._around(0), torch.full((length,), self.token), *self._around(1), some(1)]
            made.append(torch.cat([*parts, some(prompt + completion)]))
        return made

    def _around(self, end: int) -> list[Tensor]:
        """The symbols that vision begins and ends with."""
        name = ("vision_start_token_id", "vision_end_token_id")[end]
        symbol = getattr(self.model.config, name, None)
        return [torch.tensor([symbol])] if isinstance(symbol, int) and self.modality == "images" else []

    def joined(self, items: list[Part], counts: tuple[int, ...]) -> Part:
        """The arguments of some items, which are so many of each row."""
        if not items:
            return {}
        items = [_typed(item, self.model.dtype) for item in items]
        if not self.padded:
            return {name: torch.cat([item[name] for item in items]) for name in items[0]}
        taken, most, made = iter(items), max(counts), dict[str, list[Tensor]]()
        for count in counts:
            own = [next(taken) for _ in range(count)]
            for name, like in items[0].items():
                rest = [torch.zeros_like(like)] * (most - count)
                made.setdefault(name, []).append(torch.cat([*(item[name] for item in own), *rest]))
        return {name: torch.stack(rows) for name, rows in made.items()}

    def inputs(self, padding: str) -> Part:
        """What a collator makes of the four rows."""
        texts = self.texts()
        time = max(map(len, texts))
        ids, labels = torch.zeros(len(texts), time, dtype=torch.int64), torch.full((len(texts), time), -100)
        mask = torch.zeros_like(ids)
        for r, (row, completion) in enumerate(zip(texts, COMPLETIONS, strict=True)):
            begin = 0 if padding == "right" else time - len(row)
            ids[r, begin : begin + len(row)], mask[r, begin : begin + len(row)] = row, 1
            labels[r, begin + len(row) - completion : begin + len(row)] = row[-completion:]
        made = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {**made, **self.joined(self.items, self.counts), **self.by_token(ids, self.counts)}

    def rows(self, inputs: Part) -> list[Row]:
        """The rows as a model gets them by themselves."""
        taken, made = iter(self.items), list[Row]()
        for row, count in zip(causal_rows(inputs, NUMBERS), self.counts, strict=True):
            own: dict[str, Any] = dict(self.joined([next(taken) for _ in range(count)], (count,)))
            if count or not self.padded:
                own |= {name: partial(self._of, name, (count,)) for name in self.by_token(torch.ones(1, 1), (count,))}
            made.append(replace(row, source=own))
        return made

    def example(self, inputs: Part) -> dict[str, Any]:
        return {"example": inputs}

    def _of(self, name: str, counts: tuple[int, ...], ids: Tensor) -> Tensor:
        return self.by_token(ids, counts)[name]


def media_of(model: Any) -> Media | None:
    """Images or sound that a decoder's class takes beside its ids; None: it takes none.

    Raises:
        UnfitError: it takes some, and none of the shapes that are known here.
    """
    takes = set(inspect.signature(type(model).forward).parameters)
    if model.config.is_encoder_decoder or not takes & {"pixel_values", "input_features", "flattened_patches"}:
        return None
    modality = "audio" if "pixel_values" not in takes else "image"
    token = next((found for part in (f"{modality}_token_id", f"{modality}_token_index")
                  if isinstance(found := getattr(model.config, part, None), int)), None)  # fmt: skip
    problems: list[str] = []
    for name, candidate in _CANDIDATES.items():
        try:
            found = candidate(model, takes, token)
            if found is None:
                continue
            _goes_through(model, found)
            return found
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
    raise UnfitError("; ".join(problems) or "no shape known")


def _typed(item: Part, dtype: torch.dtype) -> Part:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in item.items()}


@torch.no_grad()
def _goes_through(model: Any, media: Media) -> None:
    """The model itself takes every row, and its logits change with the row's first image."""
    inputs = media.inputs("right")
    model(**inputs)
    row = media.rows(inputs)[0]
    ids = torch.tensor([[row.first, *row.gold]])

    def logits(items: dict[str, Any]) -> Tensor:
        more = {name: value(ids) if callable(value) else value for name, value in items.items()}
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more, use_cache=False).logits

    large = next(name for name, value in row.source.items() if isinstance(value, Tensor) and value.is_floating_point())
    other = {**row.source, large: row.source[large].flip(-1) + 1}
    if torch.equal(logits(dict(row.source)), logits(other)):
        raise ValueError("no logit depends on the images")


def _vision(model: Any) -> Any:
    return getattr(model.config, "vision_config", None) or model.config


def _number(model: Any, *names: str) -> int:
    """The first of some numbers of the image's configuration, or the model's."""
    for part in (_vision(model), model.config):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    if "num_channels" in names:
        return 3
    raise LookupError(f"no {' or '.join(names)}")


def _method(model: Any, modality: str) -> Any:
    name = f"get_{modality}_features"
    return getattr(model.base_model, name, None) or getattr(model, name, None)


@torch.no_grad()
def _tokens(model: Any, modality: str, item: Part) -> int:
    """Vectors that one item is encoded to."""
    method = _method(model, modality)
    if method is None:  # Qwen2Audio: two strides of two
        return item["input_features"].shape[-1] // 4
    read = {n: v for n, v in _typed(item, model.dtype).items() if n in inspect.signature(method).parameters}
    output = method(**read, return_dict=True)
    pooled = output if isinstance(output, Tensor | list | tuple) else output.get("pooler_output", output[0])
    return sum(part.numel() // part.shape[-1] for part in (pooled if isinstance(pooled, list | tuple) else [pooled]))


def _types(model: Any, takes: set[str], token: int) -> Callable[[Tensor, tuple[int, ...]], Part]:
    names = [name for name in ("mm_token_type_ids", "moe_mm_token_type_ids") if name in takes]
    if type(model).__name__.startswith(("Gemma3", "PaliGemma")):
        names = ["token_type_ids"]
    if type(model).__name__.startswith("PaliGemma"):  # a suffix, of which nothing is seen before its position
        return lambda ids, counts: {"token_type_ids": torch.ones_like(ids)}
    return lambda ids, counts: {name: (ids == token).long() for name in names}


def _listed(model: Any, takes: set[str], token: int | None, items: Iterator[Part], **more: Any) -> Media | None:
    """Media of items that the model encodes itself."""
    modality = "image" if "pixel_values" in takes else "audio"
    if token is None:
        return None
    needed = inspect.signature(type(model).forward).parameters.get("pixel_values")
    counts = COUNTS[modality] if needed is None or needed.default is None else (2, 1, 1, 2)
    taken = [next(items) for _ in range(sum(counts))]
    lengths = [_tokens(model, modality, item) for item in taken]
    called = "sound" if modality == "audio" else "images"
    return Media(model, token, taken, lengths, counts, modality=called, by_token=_types(model, takes, token), **more)


def _noise(*shape: int) -> Iterator[Tensor]:
    g = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(shape, generator=g)


def _grids(model: Any, takes: set[str], token: int | None) -> Media | None:
    """Patches of images of different sizes, one after another."""
    if "image_grid_thw" not in takes:
        return None
    merge = _number(model, "spatial_merge_size", "merge_size") if hasattr(_vision(model), "spatial_merge_size") else 2
    patch, channels = _number(model, "patch_size"), _number(model, "in_channels", "num_channels", "in_chans")
    depth = getattr(_vision(model), "temporal_patch_size", None) or 1
    shapes = [(2, 2), (1, 2), (2, 1), (1, 1), (2, 2)]

    def items(flat: bool) -> Iterator[Part]:
        for (a, b), noise in zip(shapes, _noise(64, channels * depth * patch * patch), strict=False):
            grid = torch.tensor([[1, a * merge, b * merge]])
            pixels = noise[: int(grid.prod())]
            pixels = pixels if flat else pixels.view(-1, channels, patch, patch)
            more = {"image_merge_sizes": torch.tensor([merge])} if "image_merge_sizes" in takes else {}
            yield {"pixel_values": pixels, "image_grid_thw": grid, **more}

    try:
        return _listed(model, takes, token, items(True))
    except (RuntimeError, ValueError):
        return _listed(model, takes, token, items(False))


def _patches(model: Any, takes: set[str], token: int | None) -> Media | None:
    """Padded patches and the lines and columns of each image."""
    if "spatial_shapes" not in takes:
        return None
    size = _number(model, "num_channels") * _number(model, "patch_size") ** 2
    shapes = [(4, 4), (2, 4), (4, 2), (2, 2), (4, 4)]

    def items() -> Iterator[Part]:
        for (a, b), noise in zip(shapes, _noise(1, 16, size), strict=False):
            there = (torch.arange(16) < a * b)[None]
            yield {"pixel_values": noise * there[..., None], "pixel_attention_mask": there.long(),
                   "spatial_shapes": torch.tensor([[a, b]])}  # fmt: skip

    return _listed(model, takes, token, items())


def _padded(model: Any, takes: set[str], token: int | None) -> Media | None:
    """(rows, most images of a row, channels, height, width), and what of each is no padding."""
    if "pixel_attention_mask" not in takes or "spatial_shapes" in takes:
        return None
    size = _number(model, "image_size")

    def items() -> Iterator[Part]:
        for noise in _noise(1, 3, size, size):
            yield {"pixel_values": noise, "pixel_attention_mask": torch.ones(1, size, size, dtype=torch.int64)}

    counts = COUNTS["image"]
    found = [item for _, item in zip(range(sum(counts)), items(), strict=False)]
    if token is None:
        return None
    lengths = [_tokens(model, "image", {n: v[None] for n, v in item.items()}) for item in found]
    return Media(model, token, found, lengths, counts, padded=True, by_token=_types(model, takes, token))


def _sized(model: Any, takes: set[str], token: int | None, tiles: bool = False) -> Media | None:
    """Images and their own sizes."""
    if "image_sizes" not in takes:
        return None
    size = _number(model, "image_size")
    shapes = [(size, size), (size // 2, size), (size, size // 2), (size, size), (size, size)]
    if tiles:
        shapes = [(size, size), (2 * size, size), (size, 2 * size), (size, size), (2 * size, size)]
        model.config.image_grid_pinpoints = [[size, size], [size, 2 * size], [2 * size, size]]
        model.base_model.config.image_grid_pinpoints = model.config.image_grid_pinpoints

    def items() -> Iterator[Part]:
        shape = (1, 3, 3, size, size) if tiles else (1, 3, size, size)
        for sizes, noise in zip(shapes, _noise(*shape), strict=False):
            yield {"pixel_values": noise, "image_sizes": torch.tensor([sizes])}

    return _listed(model, takes, token, items())


def _plain(model: Any, takes: set[str], token: int | None) -> Media | None:
    """(images, channels, height, width)."""
    if "pixel_values" not in takes:
        return None
    size = _number(model, "image_size", "img_size")
    more = {"qformer_input_ids": torch.tensor([[5, 6, 7]])} if "qformer_input_ids" in takes else {}
    return _listed(model, takes, token, ({"pixel_values": noise, **more} for noise in _noise(1, 3, size, size)))


def _hybrid(model: Any, takes: set[str], token: int | None) -> Media | None:
    """Every image in two resolutions."""
    if "high_res_pixel_values" not in takes:
        return None
    low, high = model.config.vision_config.image_size, model.config.high_res_vision_config.image_size
    pairs = zip(_noise(1, 3, low, low), _noise(1, 3, high, high), strict=False)
    return _listed(model, takes, token, ({"pixel_values": a, "high_res_pixel_values": b} for a, b in pairs))


def _cross(model: Any, takes: set[str], token: int | None) -> Media | None:
    """Tiles that some layers attend to, by a mask from every token to every image."""
    if "aspect_ratio_ids" not in takes:
        return None
    size, tiles = _number(model, "image_size"), _number(model, "max_num_tiles")
    pixels = _noise(1, tiles, 3, size, size)
    counts = (2, 1, 1, 2)  # a row without is another one beside rows with images
    items = [{"pixel_values": next(pixels), "aspect_ratio_ids": torch.ones(1, dtype=torch.int64),
              "aspect_ratio_mask": torch.ones(1, tiles, dtype=torch.int64)} for _ in range(sum(counts))]  # fmt: skip

    def attended(ids: Tensor, counts: tuple[int, ...]) -> Part:
        there = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return {"cross_attention_mask": there[:, None, :, None].expand(-1, ids.shape[1], -1, tiles).long()}

    return Media(model, None, items, [0] * len(items), counts, padded=True, by_token=attended)


def _perceived(model: Any, takes: set[str], token: int | None) -> Media | None:
    """Images (rows, number, ...) that cross-attention reads, by a mask from every token to every image."""
    if "image_attention_mask" not in takes:
        return None
    size = _number(model, "image_size")
    pixels, counts = _noise(1, 3, size, size), (2, 1, 1, 2)

    def attended(ids: Tensor, counts: tuple[int, ...]) -> Part:
        there = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        return {"image_attention_mask": there[:, None].expand(-1, ids.shape[1], -1).long()}

    items = [{"pixel_values": next(pixels)} for _ in range(sum(counts))]
    return Media(model, None, items, [0] * len(items), counts, padded=True, by_token=attended)


def _one_each(model: Any, takes: set[str], token: int | None) -> Media | None:
    """One image for every row, that no id stands for."""
    if "pixel_values" not in takes or token is not None or takes & {"image_attention_mask", "aspect_ratio_ids"}:
        return None
    size = _number(model, "image_size")
    items = [{"pixel_values": noise} for _, noise in zip(range(4), _noise(1, 3, size, size), strict=False)]
    return Media(model, None, items, [0] * 4, (1, 1, 1, 1))


def _sound(model: Any, takes: set[str], token: int | None) -> Media | None:
    """Features of sound, and which of them are no padding."""
    if "input_features" not in takes:
        return None
    config = next(c for c in (getattr(model.config, n, None) for n in ("audio_config", "encoder_config")) if c)
    bins = next(v for n in ("num_mel_bins", "input_feat_per_channel", "input_dim", "n_mels")
                if (v := getattr(config, n, None)))  # fmt: skip
    mask = next((n for n in ("input_features_mask", "feature_attention_mask") if n in takes), None)
    times = 2 * (getattr(config, "max_source_positions", None) or 16)

    def items() -> Iterator[Part]:
        for noise in _noise(1, bins, times):
            yield {"input_features": noise, **({mask: torch.ones(1, times, dtype=torch.int64)} if mask else {})}

    return _listed(model, takes, token, items())


_CANDIDATES: dict[str, Callable[[Any, set[str], int | None], Media | None]] = {
    "grids": _grids,
    "patches": _patches,
    "padded": _padded,
    "tiles": partial(_sized, tiles=True),
    "sizes": _sized,
    "two resolutions": _hybrid,
    "plain": _plain,
    "cross-attention": _cross,
    "perceiver": _perceived,
    "one a row": _one_each,
    "sound": _sound,
}
