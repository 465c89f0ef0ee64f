"""What a Hugging Face model's own ``generate`` forces, forbids and reweighs, in the draw of a roll-in or a free run."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.errors import UserError

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "sequence_bias": (), "encoder_repetition_penalty": (1.0,), "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": (), "min_length": (0,),
    "min_new_tokens": (0,), "forced_bos_token_id": (), "forced_eos_token_id": (), "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
    "renormalize_logits": (False,),
}  # fmt: skip
"""Settings that logits processors are made of, and the values, beside None, with which they do nothing."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_SEARCH = ("num_beams", "length_penalty", "early_stopping", "max_length", "max_new_tokens")
_LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1, 1.0), "watermarking_config": (), "penalty_alpha": (0, 0.0), "dola_layers": (),
    "num_beam_groups": (1,), "diversity_penalty": (0.0,), "constraints": (), "force_words_ids": (), "max_time": (),
    "stop_strings": (), "token_healing": (False,), "return_timestamps": (False,), "low_memory": (False,),
    "num_return_sequences": (1,),
}  # fmt: skip
"""Settings that change what ``generate`` outputs, and that nothing here reads."""

_ANY_PREFIX = (
    "SuppressTokensLogitsProcessor", "InfNanRemoveLogitsProcessor", "LogitNormalization", "TemperatureLogitsWarper",
    "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TopHLogitsWarper", "TypicalLogitsWarper",
    "EpsilonLogitsWarper", "EtaLogitsWarper",
)  # fmt: skip
"""Processors that read the scores alone."""

_OF_SOURCE = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a generation configuration that logits processors are made of, those that do something."""
    return {name: value for name, neutral in _NEUTRAL.items() if (value := _set(config, name, neutral)) is not None}


def _set(config: Any, name: str, neutral: tuple[Any, ...]) -> Any:
    value = getattr(config, name, None)
    return None if value is None or value in neutral else value


def in_words(config: Any) -> tuple[str, str]:
    """What of a generation configuration free runs and roll-ins follow, and what they do not; "" for nothing."""
    search = _SEARCH if (getattr(config, "num_beams", None) or 1) > 1 else _SEARCH[3:]
    names = [*settings_of(config), *(name for name in search if getattr(config, name, None) is not None)]
    left = [name for name, neutral in _LEFT_OUT.items() if _set(config, name, neutral) is not None]
    sampling = [name for name in ("do_sample", *_SAMPLING) if getattr(config, name, None) is not None]
    followed, ignored = (", ".join(_as_text(config, name) for name in part) for part in (names, left))
    if getattr(config, "do_sample", False):
        of = ", ".join(_as_text(config, name) for name in sampling)
        followed = f"{followed}{'; ' if followed else ''}{of} where ids are sampled (draw='sample')"
        greedy = "do_sample = True where the draw is greedy"
        ignored = f"{ignored}, {greedy}" if ignored else greedy
    return followed, ignored


def _as_text(config: Any, name: str) -> str:
    text = repr(getattr(config, name))
    return f"{name} = {text if len(text) <= 40 else text[:36] + ' ...'}"


def prepared(inner: Any, config: Any) -> Any:
    """The complete configuration that ``generate`` would work with; a length only where one is set.

    Raises:
        UserError: the model's configuration is one that ``generate`` refuses.
    """
    try:
        found = inner._prepare_generation_config(config)[0]
    except (ValueError, TypeError, AttributeError) as error:  # a dictionary where an object belongs
        raise UserError(f"{type(inner).__name__}.generate refuses the model's settings: {error}") from None
    for name in _LEFT_OUT:  # so that no processor is made of them either
        if name != "return_timestamps":  # Whisper's prompt follows it
            setattr(found, name, None)
    found.max_length = config.max_length
    return found


@dataclass(frozen=True, eq=False)
class GenerationRules:
    """transformers' own logits processors for the rows of a batch: ``freerun.types.Rules``.

    A row is processed by the prefix that it has, without padding: what counts a row's ids (``min_length``) counts its
    own, where ``generate`` counts the padding on the left too.

    Args:
        inner: the model.
        config: prepared, its ``_eos_token_tensor`` set.
        first: (rows, 1) ids before the history.
        starts: (rows, time) ids before the entry's run of generated ones: the ``input_ids`` of a ``generate``.
        source: (rows, length) ids of an encoder; None: a decoder alone, of which the prompt is meant.
        forced: (rows, n) ids that begin every row's history, -1 where none is forced; None: nothing is.
        length: entries that are generated at most; None: as many as the configuration names.
    """

    inner: Any
    config: Any
    first: Tensor
    starts: Tensor
    source: Tensor | None = None
    forced: Tensor | None = None
    length: int | None = None
    _made: dict[tuple[int, bool], Any] = field(default_factory=dict[tuple[int, bool], Any])

    def select(self, rows: Tensor) -> GenerationRules:
        """Those of some rows."""
        source, forced = (None if part is None else part[rows] for part in (self.source, self.forced))
        return replace(self, first=self.first[rows], starts=self.starts[rows], source=source, forced=forced)

    def apply(self, outputs: Tensor, prefixes: Tensor, rows: Tensor, times: Tensor, *, sampled: bool = False) -> Tensor:
        """(n, vocab) outputs as generation takes them: see ``freerun.types.Rules``."""
        scores = outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
        sampled = sampled and bool(self.config.do_sample)
        starts = self.starts[rows, times.clamp_max(self.starts.shape[1] - 1)]
        if self._reads_scores_alone(sampled):
            scores = self._processors(1, sampled)(rows[:, None], scores)
        else:
            scores = scores.clone()
            for start, time in torch.stack([starts, times], 1).unique(dim=0).tolist():
                at = ((starts == start) & (times == time)).nonzero().squeeze(1)
                ids = torch.cat([self.first[rows[at]], prefixes[at, :time].to(self.first.dtype)], 1)
                source = ids[:, :start] if self.source is None else self.source[rows[at]]
                scores[at] = self._processors(start, sampled, source)(ids, scores[at])
        return scores if self.forced is None else self._forcing(scores, rows, times)

    def _forcing(self, scores: Tensor, rows: Tensor, times: Tensor) -> Tensor:
        assert self.forced is not None
        width = self.forced.shape[1]
        ids = self.forced[rows, times.clamp_max(width - 1)].masked_fill(times >= width, -1)
        where = (ids >= 0).nonzero().squeeze(1)
        if not where.numel():
            return scores
        only = torch.full_like(scores[where], -torch.inf).scatter(1, ids[where, None], 0.0)
        return scores.index_copy(0, where, only)

    def _reads_scores_alone(self, sampled: bool) -> bool:
        names = set(settings_of(self.config)) - {"suppress_tokens", "remove_invalid_values", "renormalize_logits"}
        names -= {"forced_bos_token_id"} if self.forced is not None else set()
        if self.length is None and not _limit(self.config, 0):
            names -= {"forced_eos_token_id"}
        if names:
            return False
        return all(type(each).__name__ in _ANY_PREFIX for each in self._processors(1, sampled))

    def _processors(self, start: int, sampled: bool, source: Tensor | None = None) -> Any:
        """The list of processors for prefixes that begin with ``start`` ids."""
        reads_source = any(name in settings_of(self.config) for name in _OF_SOURCE)
        if not reads_source and (start, sampled) in self._made:
            return self._made[start, sampled]
        config = copy.copy(self.config)
        config.do_sample = sampled
        config.num_beams = 1
        if config.min_new_tokens is not None:
            config.min_length = config.min_new_tokens + start
        limit = start + self.length if self.length is not None else _limit(config, start)
        config.forced_eos_token_id = config.forced_eos_token_id if limit else None
        config.max_length = limit or config.max_length
        device = self.first.device
        made: Any = self.inner._get_logits_processor(
            generation_config=config, input_ids_seq_length=start, encoder_input_ids=source, device=device,
            model_kwargs={},
        )  # fmt: skip
        if self.forced is not None:  # by row, here
            kept = [each for each in made if type(each).__name__ != "ForcedBOSTokenLogitsProcessor"]
            made = type(made)(kept)
        if not reads_source:
            self._made[start, sampled] = made
        return made


def _limit(config: Any, start: int) -> int | None:
    """Ids at which ``generate`` stops, where the configuration names a number."""
    return start + config.max_new_tokens if config.max_new_tokens is not None else config.max_length
