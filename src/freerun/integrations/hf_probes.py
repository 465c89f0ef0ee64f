"""What a Hugging Face model is asked before it is trusted: a few forwards on a small batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.checks.report import Check, Finding, Probe, Verdict
from freerun.checks.run import CHECKS
from freerun.errors import UserError
from freerun.models.huggingface import HuggingFaceModel, keeps_all

_ROWS, _TIME = 3, 7


def trial_batch(m: HuggingFaceModel, example: Mapping[str, Any] | None, longest: int = _TIME) -> Batch:
    """Three rows of different lengths, of an example, or of ids made up: ordinary ones, and one pad."""
    made: Any = m
    if example is not None:
        return made.batch(**{k: v[:_ROWS] if isinstance(v, Tensor) and v.dim() else v for k, v in example.items()})
    time = min(longest, m.limit or longest)
    ids = _ids(m, time, m.target_vocab)
    pad = getattr(m.inner.config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < m.target_vocab:
        ids[0, 1] = pad
    lengths = torch.tensor([time, time - 1, max(time // 2, 2)])
    there = torch.arange(time) < lengths[:, None]
    given = {"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~there, -100)}
    if m.is_encoder_decoder:
        given = {"labels": given["labels"], **_source(m)}
    return made.batch(**{k: v.to(m.inner.device) for k, v in given.items()})


def _ids(m: HuggingFaceModel, time: int, vocab: int) -> Tensor:
    """Ordinary symbols: none that the configuration gives a meaning."""
    config = m.inner.config.get_text_config(decoder=True)
    special = {v for c in (m.inner.config, config) for k, v in c.to_dict().items() if k.endswith("token_id")
               and isinstance(v, int)}  # fmt: skip
    usable = torch.tensor([i for i in range(min(vocab, 1000)) if i not in special])
    generator = torch.Generator().manual_seed(0)
    return usable[torch.randint(len(usable), (_ROWS, time), generator=generator)]


def _source(m: HuggingFaceModel) -> dict[str, Tensor]:
    name = m.inner.main_input_name
    if name == "input_ids":
        table: Any = m.inner.get_encoder().get_input_embeddings()
        ids = _ids(m, 5, table.num_embeddings)
        return {"input_ids": ids, "attention_mask": (torch.arange(5) < torch.tensor([[5], [4], [3]])).long()}
    config = m.inner.config
    if name != "input_features" or not hasattr(config, "num_mel_bins") or not hasattr(config, "max_source_positions"):
        raise UserError(
            f"{type(m.inner).__name__} reads {name}, and no such input can be made up: give hf.adapt(model, "
            "example=batch) a batch as your collator makes it"
        )
    shape = (_ROWS, config.num_mel_bins, 2 * config.max_source_positions)
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(m.inner.dtype)}


def local(config: Any) -> bool:
    """Whether a layer looks back only so far, which a probe of a few positions cannot see."""
    config = config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or any(
        getattr(config, name, None) is not None for name in ("sliding_window", "attention_chunk_size", "window_size")
    )


class _Spread(Probe):
    """Tolerance in units of how far the logits of a position lie apart: what they have in common says nothing."""

    share: float

    @property
    def tolerance(self) -> float:
        """The share of the largest deviation from a position's mean."""
        logits = self.outputs[self.batch.mask].float()
        return self.share * float((logits - logits.mean(-1, keepdim=True)).abs().max())


class Tight(_Spread):
    """For two calls of the same shape: they differ in nothing, but for sums that are not made twice in one order."""

    share = 10 * torch.finfo(torch.float32).eps


class Looser(_Spread):
    """For calls of different shapes, without the factor that checks of protocols add."""

    @property
    def share(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2e-5 of float32, about 3 % of bfloat16."""
        return _roundings(self.outputs, 200, 4)


class Loose(_Spread):
    """For two ways of computing the same: some roundings of the weights' type."""

    @property
    def share(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2e-6 of float32, 0.3 % of bfloat16; checks of protocols allow ten times as much."""
        return _roundings(self.outputs, 20, 0.4)


def _roundings(outputs: Tensor, single: float, half: float) -> float:
    kind = outputs.dtype
    wide = kind in (torch.float32, torch.float64)  # models in float64 have parts in float32
    return single * torch.finfo(torch.float32).eps if wide else half * torch.finfo(kind).eps


_SHAPED = ("length_inert", "rows_independent")
"""Checks that compare calls of different shapes."""


_HELD = (
    "finite", "logits", "reads_targets", "causal", "unshifted_history", "reads_last_entry", "pads_inert", *_SHAPED,
    "uses_history",
)  # fmt: skip
"""Checks of a forward that every model must hold; those of a batch and of its context say nothing here."""


def refusals(model: Any, batch: Batch, outputs: Tensor) -> list[Finding]:
    """What every model must hold."""
    tight, looser = Tight(model, batch, outputs), Looser(model, batch, outputs)
    return [CHECKS["deterministic"](tight), *(CHECKS[name](looser if name in _SHAPED else tight) for name in _HELD)]


def at_length(model: Any, batch: Batch) -> list[Finding]:
    """What only longer rows show: attention in chunks or by hashing, rows that change with what stands beside them."""
    probe = Looser(model, batch, model(batch))
    checks = [CHECKS["finite"], *(CHECKS[name] for name in _SHAPED), CHECKS["deterministic"]]
    return [replace(check(probe), name=f"{check.name}_at_{batch.time}") for check in checks]


def capability(what: str, made: Any, batch: Batch, outputs: Tensor) -> Finding:
    """Whether a model that can do more gives what the plain one gave: ``ok``, or ``not applicable`` and why."""
    names, fine = CAPABILITIES[what]
    probe = Loose(made, batch, outputs)
    for name in names:
        found = _KEEPS_ALL(probe) if name == "keeps_all" else CHECKS[name](probe)
        if found.status != "ok":
            return Finding(what, "not applicable", found.explanation)
    return Finding(what, "ok", fine)


def _keeps_all(probe: Probe) -> Verdict:
    """The cache holds keys and values."""
    state = probe.model.start(probe.batch)
    if hasattr(state, "cache") and not keeps_all(state.cache):
        return "the cache holds recurrent states, which take one entry at a time"
    return None


_KEEPS_ALL = Check(_keeps_all, "the first state", "step by step")


_STEPPER = ("step_equals_parallel", "stepper_state", "stepper_select")


_READER = ("keeps_all", "read_equals_steps")


CAPABILITIES: dict[str, tuple[tuple[str, ...], str]] = {
    "split": (("split_equals_forward",), "the vocabulary can be read at a few positions"),
    "encode": (("encode_equals_forward",), "the source can be encoded once"),
    "step": (_STEPPER, "the model's own cache gives the logits of the forward"),
    "read": (_READER, "several entries can be read at once"),
    "cached": ((*_STEPPER, *_READER, "cache_equals_forward"), "rows can be read at places of their own"),
    "vectors": (("vectors_equal_ids",), "histories can be given as vectors"),
}
