"""What a forward takes besides ids, and how rows are cut out of it: images, videos, audio, types of tokens."""

from __future__ import annotations

import inspect
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError

_MODALITIES = {
    "video": r"video|second_per_grid",
    "audio": r"audio|^input_features|^input_values|feature_attention_mask|feature_lengths",
    "image": r"pixel|image|_grid|spatial_shapes|aspect_ratio|num_crops|patch|qformer",
}
"""Which arguments hold what, by their names."""

_RAW = re.compile(r"pixel|patches")
"""Which of them features take the place of; sizes and grids still tell the positions."""

_BY_TOKEN = re.compile(r"token_type|cross_attention_mask|image_attention_mask|position_mask|visual_bbox|^bbox$")


@dataclass(frozen=True, eq=False)
class Carried:
    """An argument of a forward, and how rows are cut out of it."""

    value: Any  # a tensor; anything else is the same for all rows
    counts: Tensor | None = None  # (rows,) its entries for each row, row after row; None: one a row
    modality: str | None = None  # of what stands for tokens of the ids
    fill: Tensor | None = None  # (rows, 1, ...) of one that goes by tokens: what stands after those of a prompt

    def select(self, rows: Tensor) -> Carried:
        """The requested rows."""
        if not isinstance(self.value, Tensor):
            return self
        if self.counts is None:
            return replace(self, value=self.value[rows], fill=None if self.fill is None else self.fill[rows])
        return replace(self, value=self.value[entries_of(self.counts, rows)], counts=self.counts[rows])

    def to(self, device: torch.device | str) -> Carried:
        """The same on another device."""
        moved = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **moved)

    def until(self, time: int) -> Any:
        """The argument for ``time`` tokens."""
        if self.fill is None:
            return self.value
        more = time - self.value.shape[1]
        if more <= 0:
            return self.value[:, :time]
        return torch.cat([self.value, self.fill.expand(-1, more, *self.value.shape[2:])], 1)


def entries_of(counts: Tensor, rows: Tensor) -> Tensor:
    """The entries of some rows, in their order, where row r has ``counts[r]`` of them.

    >>> entries_of(torch.tensor([2, 0, 1]), torch.tensor([2, 0]))
    tensor([2, 0, 1])
    """
    first = counts.cumsum(0) - counts
    return torch.cat([torch.arange(int(counts[r]), device=rows.device) + first[r] for r in rows.tolist()])


@dataclass(frozen=True, eq=False)
class Features:
    """What images, videos or audio were encoded to: (tokens, size), those of each row after another's."""

    kind: type  # of what the model's get_image_features returns
    parts: Mapping[str, Any]  # pooled vectors, and those that enter later layers: tensors, or lists of them
    tokens: Tensor  # (rows,)

    @property
    def output(self) -> Any:
        """As the model's forward takes it."""
        return self.kind(**self.parts)

    def select(self, rows: Tensor) -> Features:
        """The requested rows."""
        index = entries_of(self.tokens, rows)
        deep = "deepstack_features"
        parts = {
            n: [_cut(v, index) for v in part] if n == deep else _cut(part, index) for n, part in self.parts.items()
        }
        return Features(self.kind, parts, self.tokens[rows])


def _cut(features: Any, index: Tensor) -> Any:
    flat = torch.cat([each.reshape(-1, each.shape[-1]) for each in features])[index]
    return flat[None] if isinstance(features, Tensor) else [flat]


@dataclass(frozen=True, eq=False)
class Media:
    """The arguments of a batch besides its ids, and which tokens stand for what they hold."""

    parts: Mapping[str, Carried] = field(default_factory=dict)
    placeholders: tuple[int, ...] = ()  # ids that stand for them
    tokens: Mapping[str, Tensor] = field(default_factory=dict)  # by modality: (rows,) tokens that stand for it
    features: Mapping[str, Features] | None = None  # by modality; None: not encoded
    known: Tensor | None = None  # (rows,) entries up to the last that stands for something; None: there are none
    marks: tuple[int, ...] = ()  # ids that begin and end what stands for something

    @property
    def prefilled(self) -> bool:
        """Whether prompts have to be read whole, before the others: images, or tokens of more kinds than one."""
        by_token = any(part.fill is not None for part in self.parts.values())
        return self.known is not None or (by_token and bool(self.placeholders))

    def select(self, rows: Tensor) -> Media:
        """The requested rows."""
        parts = {name: part.select(rows) for name, part in self.parts.items()}
        tokens = {name: counts[rows] for name, counts in self.tokens.items()}
        features = None if self.features is None else {name: part.select(rows) for name, part in self.features.items()}
        return replace(
            self, parts=parts, tokens=tokens, features=features, known=None if self.known is None else self.known[rows]
        )

    def to(self, device: torch.device | str) -> Media:
        """The same on another device."""
        parts = {name: part.to(device) for name, part in self.parts.items()}
        tokens = {name: counts.to(device) for name, counts in self.tokens.items()}
        return replace(
            self, parts=parts, tokens=tokens, features=None, known=None if self.known is None else self.known.to(device)
        )

    def arguments(self, time: int) -> dict[str, Any]:
        """Arguments of the forward over ``time`` tokens."""
        used = {name for name, counts in self.tokens.items() if bool(counts.any())}
        parts = {
            name: part.until(time)
            for name, part in self.parts.items()
            if part.modality is None or part.modality in used or part.modality not in self.tokens
        }
        if self.features is None:
            return parts
        features = {name: part.output for name, part in self.features.items() if name in used}
        kept = {name: part for name, part in parts.items() if not _RAW.search(name)}
        return {**kept, **({"mm_encoder_outputs": features} if features else {})}

    def on_the_left(self, lengths: list[int]) -> dict[str, Any]:
        """Arguments for prompts of these lengths, padded on the left, as ``generate`` takes them."""
        longest, found = max(lengths), self.arguments(max(lengths))
        for name in found.keys() & {name for name, part in self.parts.items() if part.fill is not None}:
            rows = zip(found[name], lengths, strict=True)
            found[name] = torch.stack(
                [torch.cat([row[:0].new_zeros(longest - n, *row.shape[1:]), row[:n]]) for row, n in rows]
            )
        return found

    def later(self, positions: Tensor, rows: Tensor | None = None) -> dict[str, Any]:
        """Arguments of a forward over a cache for tokens (n, q) at their positions, of these rows: no image again."""
        at: dict[str, Any] = {}
        for name, part in self.parts.items():
            # what tells tokens that stand for images from others has been read with them
            if part.modality is not None or (part.fill is not None and self.placeholders):
                continue
            own = part if rows is None else part.select(rows)
            at[name] = own.value
            if own.fill is not None:
                row = torch.arange(len(positions), device=positions.device)[:, None]
                at[name] = own.until(int(positions.max()) + 1)[row, positions]
        return at


def placeholder_ids(config: Any) -> dict[str, tuple[int, ...]]:
    """By modality: the ids that stand for what is put in their places."""
    found: dict[str, tuple[int, ...]] = {}
    for modality in _MODALITIES:
        names = [f"{modality}_token_id", f"{modality}_token_index"]
        names += ["media_placeholder_token_id"] if modality == "image" else []
        values = [getattr(config, name, None) for name in names]
        if ids := tuple(dict.fromkeys(value for value in values if isinstance(value, int) and value >= 0)):
            found[modality] = ids
    return found


_MARK = re.compile(r"(vision|image|video|audio|boi|eoi|boa|eoa)(_.*)?_token_(id|index)")


def mark_ids(config: Any) -> tuple[int, ...]:
    """Ids that the configuration names images and the like by, those that begin and end them among them."""
    values = (value for name, value in config.to_dict().items() if _MARK.fullmatch(name))
    return tuple(dict.fromkeys(value for value in values if isinstance(value, int) and value >= 0))


def modality_of(name: str) -> str | None:
    """What an argument holds, by its name."""
    if _BY_TOKEN.search(name):
        return None
    return next((modality for modality, names in _MODALITIES.items() if re.search(names, name)), None)


def features_of(inner: Any, modality: str, arguments: Mapping[str, Any], tokens: Tensor) -> Features | None:
    """What a model encodes a modality to; None: it has no method for it, or the arguments do not hold it."""
    method = next(
        (found for part in (inner.base_model, inner) if (found := getattr(part, f"get_{modality}_features", None))),
        None,
    )
    if method is None:
        return None
    read = {name: arguments[name] for name in inspect.signature(method).parameters if name in arguments}
    if not any(_RAW.search(name) for name in read):
        return None
    output = method(**read, return_dict=True)
    names = ("pooler_output", "deepstack_features")
    return Features(type(output), {name: output[name] for name in names if output.get(name) is not None}, tokens)


class Cutting:
    """How the arguments of one batch are cut by rows."""

    def __init__(self, inner: Any, arguments: Mapping[str, Any], ids: Tensor) -> None:
        self.inner, self.arguments, self.ids = inner, arguments, ids  # ids (rows, time), -1: none
        # what is attended to by a mask is each row's, whatever its ids
        attended = "cross_attention_mask" in inspect.signature(type(inner).forward).parameters
        self.placeholders = {} if attended else placeholder_ids(inner.config)
        self.tokens = {
            modality: torch.isin(ids, ids.new_tensor(known)).sum(1) for modality, known in self.placeholders.items()
        }

    def carried(self, name: str) -> Carried | str:
        """The argument with its way to be cut, or what is wrong with it."""
        value, rows = self.arguments[name], len(self.ids)
        if isinstance(value, list | tuple) and value and not isinstance(value[0], str):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                return f"{name} is a {type(value).__name__} that no row can be cut out of: give a tensor"
        if not isinstance(value, Tensor):
            return Carried(value)
        modality = modality_of(name)
        if modality is not None and modality in self.tokens and value.dim():
            counts = self._counts(name, value, modality)
            return counts if isinstance(counts, str) else Carried(value, counts, modality)
        if value.dim() == 0:
            return Carried(value)
        if value.shape[0] == rows:
            return Carried(value, modality=modality)
        return (
            f"{name} {tuple(value.shape)} has {value.shape[0]} entries for {rows} rows, and nothing in the batch shows "
            "which belong to which row: give one for each row, or leave it out of the collator"
        )

    def _counts(self, name: str, value: Tensor, modality: str) -> Tensor | str | None:
        """(rows,) entries of each row; None: one a row; or what is wrong."""
        number, rows, tokens = value.shape[0], len(self.ids), self.tokens[modality]
        total, counted = int(tokens.sum()), self.arguments.get("batch_num_images")
        if name == "batch_num_images":
            return None if number == rows else self._unclear(name, value, modality)
        if total == 0:  # cut off, or never there
            return self._unclear(name, value, modality) if _RAW.search(name) or number != rows else None
        grid = self.arguments.get(f"{modality}_grid_thw")
        if isinstance(grid, Tensor):
            areas = grid.prod(-1)
            images = _assigned(areas * total, tokens * int(areas.sum()))
            if images is None:  # lines may have a token at their ends
                images = self._by_features(modality, len(grid))
            if images is not None and number in (len(grid), int(areas.sum())):
                return images if number == len(grid) else _summed(areas, images)
            return self._unclear(name, value, modality)
        if isinstance(counted, Tensor) and int(counted.sum()) == number:
            return counted
        if f"{modality}_sizes" in self.arguments:  # of sizes of their own
            images = self._by_features(modality, number)
            return self._unclear(name, value, modality) if images is None else images
        if number == rows and self._padded(modality):
            return None
        here = torch.isin(self.ids, self.ids.new_tensor(self.placeholders[modality]))
        runs = (here & ~torch.nn.functional.pad(here, (1, 0))[:, :-1]).sum(1)
        if int(runs.sum()) == number:
            return runs
        if total % number == 0 and not bool((tokens % (total // number)).any()):
            return tokens // (total // number)
        return self._unclear(name, value, modality)

    def _by_features(self, modality: str, number: int) -> Tensor | None:
        """(rows,) images of each row, of which there are ``number``, by the lengths of what they are encoded to."""
        held = next(v for n, v in self.arguments.items() if isinstance(v, Tensor) and modality_of(n) == modality)
        # only their lengths are of interest, and no generator may be moved by them
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(held)):
            found = features_of(self.inner, modality, self.arguments, self.tokens[modality])
        pooled = () if found is None else found.parts["pooler_output"]
        if len(pooled) != number:
            return None
        return _assigned(self.tokens[modality].new_tensor([each.shape[-2] for each in pooled]), self.tokens[modality])

    def _padded(self, modality: str) -> bool:
        """Whether images are (rows, most of a row, ...)."""
        held = (v for n, v in self.arguments.items() if isinstance(v, Tensor) and modality_of(n) == modality)
        return any(value.dim() >= 5 and value.shape[0] == len(self.ids) for value in held)

    def _unclear(self, name: str, value: Tensor, modality: str) -> str:
        ids, tokens = self.placeholders[modality], self.tokens[modality].tolist()
        return (
            f"{name} {tuple(value.shape)} does not fit the ids, whose rows have {tokens[:8]} tokens that stand for "
            f"{modality} (id {', '.join(map(str, ids))}), so that it is unclear which of its entries belong to which "
            "row: was it made together with input_ids, and are all of its tokens there (truncation)?"
        )


def _devices(value: Tensor) -> list[int]:
    return [value.get_device()] if value.is_cuda else []


def _assigned(lengths: Tensor, tokens: Tensor) -> Tensor | None:
    """(rows,) how many of the items, of so many tokens each, the rows' tokens are, item after item; None: they differ.

    >>> _assigned(torch.tensor([2, 3, 4]), torch.tensor([5, 0, 4]))
    tensor([2, 0, 1])
    """
    if int(lengths.sum()) != int(tokens.sum()):
        return None
    ends, limits = lengths.cumsum(0), tokens.cumsum(0)
    reached = torch.searchsorted(ends, limits, right=True)
    met = torch.where(limits > 0, ends[(reached - 1).clamp_min(0)], limits)
    return None if bool((met != limits).any()) else reached.diff(prepend=reached.new_zeros(1))


def _summed(areas: Tensor, images: Tensor) -> Tensor:
    """(rows,) the sum of each row's areas."""
    row = torch.arange(len(images), device=areas.device).repeat_interleave(images)
    return areas.new_zeros(len(images)).index_add(0, row, areas)


_READ_IDS = ("get_placeholder_mask", "inputs_merger", "get_rope_index")
"""Methods that find images among the ids; by the last, positions."""


@contextmanager
def apart_from(inner: Any, own: Tensor | None, stands: bool) -> Generator[None]:
    """Ids at which ``own`` ((rows, time) bool) is True mean nothing but themselves, though they are those of images.

    ``stands``: whether there are some among them that stand for an image, and do not begin or end one.
    """
    if own is None:
        yield
        return
    base = inner.base_model
    found = [name for name in _READ_IDS if callable(getattr(base, name, None))]
    if stands and not set(found).intersection(_READ_IDS[:2]):
        raise UserError(
            f"{type(inner).__name__} was fed an id of its own that stands for an image, and takes it for one: bar it "
            "from generation (generation_config.suppress_tokens)"
        )

    def without(method: Any) -> Any:
        def call(*rest: Any, **named: Any) -> Any:
            if isinstance(ids := named.get("input_ids"), Tensor):
                return method(*rest, **{**named, "input_ids": ids.masked_fill(own, 0)})
            return method(rest[0].masked_fill(own, 0), *rest[1:], **named)

        return call

    for name in found:
        setattr(base, name, without(getattr(base, name)))
    try:
        yield
    finally:
        for name in found:
            delattr(base, name)
