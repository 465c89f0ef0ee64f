"""From a Hugging Face model to a Model of freerun, able to do what a few forwards on a small batch show it can do."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from freerun.batch import Batch
from freerun.checks.report import Check, Finding, Probe, Verdict
from freerun.checks.run import CHECKS
from freerun.errors import UserError, out_of_memory
from freerun.integrations.hf_mistakes import label_problems
from freerun.models import huggingface as hf
from freerun.models.huggingface.rules import in_words
from freerun.rollin.model import eval_mode, refuse_coupled_rows

_ROWS, _TIME, _LONGER = 3, 7, 64
"""Rows and positions of the trial batches, where the model has as many."""


class _Able(NamedTuple):
    """What a model can do."""

    bases: tuple[type[hf.HuggingFaceModel], ...]  # of its adapter's class
    halves: bool = False
    findings: tuple[Finding, ...] = ()
    tried: frozenset[str] | None = frozenset()  # arguments that it was tried on; None: nothing
    limit: int | None = None  # tokens that it can read; None: what its configuration names
    shifts: bool = True  # whether its own loss shifts labels
    from_zero: bool = True  # whether a first token is at position 0


_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, _Able]] = WeakKeyDictionary()


def unwrapped(model: nn.Module) -> Any:
    """Return the ``PreTrainedModel`` within DDP, ``torch.compile``, PEFT and their like, in any order."""
    from transformers import PreTrainedModel

    inner: Any = model
    for _ in range(10):
        if isinstance(inner, PreTrainedModel):
            return inner
        if getattr(inner, "peft_config", None):
            for name, config in inner.peft_config.items():
                if config.is_prompt_learning:
                    raise UserError(
                        f"the PEFT adapter {name!r} ({type(config).__name__}) puts learnt vectors before every "
                        "sequence, which a history rolled in without them would not see: use LoRA or another adapter "
                        "that changes weights"
                    )
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            break
    raise UserError(
        "hf.adapt takes a transformers PreTrainedModel, or one within DDP, torch.compile or PEFT; got "
        f"{type(model).__name__}. A model of your own needs no adapting: any callable from a Batch to outputs will do"
    )


def adapt(
    model: nn.Module,
    example: Mapping[str, Any] | None = None,
    generation_config: Any = "own",
    *,
    beyond_trained_length: bool = False,
) -> Any:
    """A Hugging Face model as a Model: ``m(m.batch(**collated))`` are its logits, aligned with the targets.

    Nothing is known of families. A few forwards on a small batch show whether the model is causal, where its last
    hidden vectors are, whether it takes embeddings, and whether it goes on over a cache; what it cannot do is left
    out (``m.findings`` has the reasons), and roll-ins take an engine that does without.

    Args:
        model: a ``PreTrainedModel`` that generates, alone or within DDP, FSDP2, ``torch.compile`` or PEFT. What is
            differentiated goes through it as it is; roll-ins go through the model within.
        example: a collated batch to try the model on, where none can be invented: audio, images.
        generation_config: whose settings free runs and roll-ins follow, as the model's own ``generate`` does: "own",
            those of ``model.generation_config`` at each call; a ``GenerationConfig``; None: nobody's, every id is
            chosen from the model's outputs as they are. ``m.findings`` has what is followed and what is not.
        beyond_trained_length: take rows of more tokens than ``config.max_position_embeddings``: models with rotary
            positions alone, which compute them for any length.

    Returns:
        A ``torch.nn.Module`` with ``batch``, ``inputs`` and the methods of the protocols in ``freerun.types`` that the
        model honours; it shares all weights with ``model``.

    Raises:
        UserError: the model breaks the contract (by the name of the probe), an example is needed, or the model's
            positions do not go beyond its length.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> gpt = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    >>> m = adapt(gpt)
    >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
    >>> batch = m.batch(input_ids=ids, labels=torch.tensor([[-100, -100, 4, 1, 5]]))
    >>> m(batch).shape, batch.mask
    (torch.Size([1, 4, 11]), tensor([[False,  True,  True,  True]]))

    What it is not: a copy, or a trainer; see ``freerun.hf.Trainer``.
    """
    inner = unwrapped(model)
    if generation_config not in ("own", None) and not hasattr(generation_config, "eos_token_id"):
        got = type(generation_config).__name__
        raise UserError(f"generation_config must be 'own', a transformers GenerationConfig or None; got {got}")
    adapter = _built(model, inner, _known(inner, example))
    adapter.examine, adapter.follows, adapter.look = _examine_anew, generation_config, _mistakes
    if beyond_trained_length:
        if problem := hf.ends_with_its_length(inner):
            raise UserError(f"beyond_trained_length=True: {type(inner).__name__} {problem}")
        adapter.limit, adapter.beyond = None, True
    adapter.findings += tuple(_generation(adapter.generation_config))
    return adapter


def _known(inner: Any, example: Mapping[str, Any] | None) -> _Able:
    """What the model can do, from earlier forwards or new ones."""
    kind = (inner.config._attn_implementation, inner.dtype)
    known = _KNOWN.get(inner)
    more = set(example or ()) - {"labels", "replaceable", "rows"}
    # without an example, the findings on an earlier one hold
    tried = known[1].tried if known is not None and known[0] == kind else None
    if known is None or known[0] != kind or (example is not None and (tried is None or not tried.issuperset(more))):
        known = _KNOWN[inner] = (kind, _found(inner, example))
    return known[1]


def _generation(config: Any) -> Iterator[Finding]:
    """What of a generation configuration is followed, and what is not."""
    followed, left = ("", "") if config is None else in_words(config)
    if followed:
        yield Finding("generation", "ok", f"free runs and roll-ins follow generation_config: {followed}")
    if left:
        yield Finding("generation", "not applicable", f"not followed, of generation_config: {left}")


def _found(inner: Any, example: Mapping[str, Any] | None) -> _Able:
    try:
        return _examined(inner, example)
    except UserError as error:
        if example is not None or not hf.placeholder_ids(inner.config):
            raise
        # a model that reads images with its ids may be another without: its first batch shows it
        base = hf.EncoderDecoder if inner.config.is_encoder_decoder else hf.CausalModel
        return _Able((base,), findings=(Finding("ids alone", "not applicable", str(error)),), tried=None)


def _examine_anew(adapter: Any, arguments: Mapping[str, Any]) -> None:
    """Let a batch that holds more than ids show what the model can do with it."""
    _enable(adapter, _known(adapter.inner, arguments))
    adapter.findings += tuple(_generation(adapter.generation_config))


def _mistakes(adapter: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what all rows of a first batch show: the same as a trainer's first step, without its tokenizer."""
    if problems := label_problems(None, adapter, [arguments]):
        raise UserError(problems)


def _built(model: nn.Module, inner: Any, able: _Able) -> Any:
    adapter = hf.HuggingFaceModel(model, inner)
    _enable(adapter, able)
    # a new module is in training mode; the model's own mode is what counts
    adapter.training = model.training
    return adapter


def _enable(adapter: Any, able: _Able) -> None:
    """Give an adapter the methods that its model honours."""
    name = "".join(base.__name__ for base in able.bases)
    adapter.__class__ = type(name, able.bases, {"__reduce__": _reduced})
    adapter.findings, adapter.tried = able.findings, able.tried
    adapter.limit = adapter.limit if able.limit is None or adapter.beyond else able.limit
    adapter.shifts, adapter.from_zero = able.shifts, able.from_zero
    adapter._halves = _halves(adapter) if able.halves else hf.WholeHead()


def _reduced(adapter: hf.HuggingFaceModel) -> tuple[Any, ...]:
    """How it is pickled and copied: its class is made by what the model can do."""
    halves = isinstance(adapter._halves, hf.SplitHead)
    able = _Able(type(adapter).__bases__, halves, adapter.findings, adapter.tried, adapter.limit, adapter.shifts,
                 adapter.from_zero)  # fmt: skip
    examines = adapter.examine is not None
    return (
        _restored,
        (adapter.model, adapter.inner, able, examines),
        {name: getattr(adapter, name) for name in ("follows", "limit", "beyond")},
    )


def _restored(model: nn.Module, inner: Any, able: _Able, examines: bool) -> Any:
    adapter = _built(model, inner, able)
    adapter.examine = _examine_anew if examines else None
    return adapter


def _halves(adapter: hf.HuggingFaceModel) -> hf.SplitHead:
    inner = adapter.inner
    trunk = inner.get_decoder()
    if not hasattr(trunk, "get_output_embeddings"):
        trunk = inner.base_model  # a head that has the name of a decoder
    while trunk.get_output_embeddings() is not None and trunk.base_model is not trunk:
        trunk = trunk.base_model  # a decoder that is a model with a head itself

    def stub(hidden: torch.Tensor) -> dict[str, Any]:
        one = torch.zeros(1, 1, dtype=torch.int64, device=hidden.device)
        if not adapter.is_encoder_decoder:
            return {"input_ids": one}
        return {"encoder_outputs": hf.answer(hidden[:, :1]), "decoder_input_ids": one}

    return hf.SplitHead(inner, trunk, stub)


@torch.no_grad()
def _examined(inner: Any, example: Mapping[str, Any] | None) -> _Able:
    if not inner.can_generate():
        raise UserError(
            f"{type(inner).__name__} does not generate: freerun trains models that predict one entry after another "
            "(AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)"
        )
    refuse_coupled_rows(inner)
    base = hf.EncoderDecoder if inner.config.is_encoder_decoder else hf.CausalModel
    with eval_mode(inner), _own_precision(inner):
        plain = _built(inner, inner, _Able((base,)))
        batch, outputs, tried = _tried(plain, example, _TIME)
        longer, at_length = (batch, outputs) if example is not None else _longer(plain)
        # two calls of one shape differ in nothing, but for sums that are not taken twice in one order
        tight = _Spread(plain, batch, outputs, 10 * torch.finfo(torch.float32).eps)
        looser = _Spread(plain, batch, outputs, _roundings(outputs, 200, 4))
        findings = [CHECKS[name](looser if name in _SHAPED else tight) for name in _HELD]
        # only longer rows show attention in chunks or by hashing
        long = _Spread(plain, longer, at_length, looser.share)
        findings += [replace(CHECKS[name](long), name=f"{name}_at_{longer.time}") for name in _AT_LENGTH]
        # what a checked model is only warned of: an adapted one that reads no history is an encoder
        if refused := [finding for finding in findings if finding.status in ("refused", "warning")]:
            name = type(inner).__name__
            raise UserError([f"{name}: {finding.name}: {finding.explanation}" for finding in refused])
        bases, halves, found = _capabilities(inner, base, batch, outputs)
        shifts = base is hf.EncoderDecoder or _shifts(inner, batch)
        from_zero = not plain.accepts("position_ids") or _counts_from_zero(plain, batch)
    return _Able((*bases, base), halves, (*findings, *found), tried, plain.limit, shifts, from_zero)


@contextmanager
def _own_precision(inner: Any) -> Generator[None]:
    """The model without autocast, around it or in the forward that accelerate's ``prepare`` gives it: sums rounded to
    eight bits differ by more than what is looked for."""
    own, wrapped = (vars(inner).get(name) for name in ("_original_forward", "forward"))
    kinds = [kind for kind in {"cpu", inner.device.type} if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if own is None or wrapped is None:
            yield
            return
        inner.forward = own
        try:
            yield
        finally:
            inner.forward = wrapped


def _counts_from_zero(plain: Any, batch: Batch) -> bool:
    """Whether positions 0, 1, ... are what the model takes ids without positions to stand at."""
    arguments = plain.arguments(batch.context, batch.history[:, :-1])
    if "input_ids" not in arguments or "position_ids" in arguments:
        return True
    counted = torch.arange(batch.time, device=batch.history.device).repeat(batch.size, 1)
    try:
        own, other = (plain.inner(**arguments, **more, use_cache=False, return_dict=True).logits.float()
                      for more in ({}, {"position_ids": counted}))  # fmt: skip
    except Exception as error:  # positions of another shape
        if out_of_memory(error):
            raise
        return False
    # images may take fewer positions than they have tokens
    counted = batch.mask if batch.context.media.known is not None else torch.arange(batch.time) < 1
    apart = (own - other).abs().amax(-1)[counted.expand_as(batch.mask).to(own.device)]
    return bool(apart.max() <= 1e-5 * float(own.abs().max()))


def _capabilities(
    inner: Any, base: type[hf.HuggingFaceModel], batch: Batch, outputs: Tensor
) -> tuple[list[type[hf.HuggingFaceModel]], bool, list[Finding]]:
    """What a model can do beyond a forward, each tried with what was found before it."""
    able: list[type[hf.HuggingFaceModel]] = []
    findings: list[Finding] = []
    halves = True

    def has(what: str, *parts: type[hf.HuggingFaceModel]) -> bool:
        names, fine = _CAPABILITIES[what]
        try:
            adapter = _built(inner, inner, _Able((*parts, *able, base), halves))
        except (AttributeError, NotImplementedError, UserError) as error:
            findings.append(Finding(what, "not applicable", str(error)))
            return False
        probe = _Spread(adapter, batch, outputs, _roundings(outputs, 20, 0.4))
        tried = (_CHECKS[name](probe) for name in names)
        failed = next((finding for finding in tried if finding.status != "ok"), None)
        findings.append(Finding(what, "not applicable", failed.explanation) if failed else Finding(what, "ok", fine))
        return failed is None

    halves = has("split")
    encoding = hf.SourceEncoding if base is hf.EncoderDecoder else hf.MediaEncoding
    if (base is hf.EncoderDecoder or batch.context.media.known is not None) and has("encode", encoding):
        able.append(encoding)
    seen = base is hf.EncoderDecoder or not hf.is_local(inner.config) or hf.masks_by_distance(inner)
    if seen and has("cached", hf.RaggedDecoding):
        able.insert(0, hf.RaggedDecoding)
    elif has("step", hf.CachedDecoding):
        able.insert(0, hf.ChunkedDecoding if has("read", hf.ChunkedDecoding) else hf.CachedDecoding)
    if has("vectors", hf.EmbeddingInputs):
        able.append(hf.EmbeddingInputs)
    # the more special before what they are made of
    return sorted(able, key=lambda part: issubclass(part, base)), halves, findings


def _shifts(inner: Any, batch: Batch) -> bool:
    """Whether the model's own loss compares a position with the next label, and not with its own."""
    ids = torch.cat([batch.context.first, batch.history], 1)
    labels = torch.cat([torch.full_like(ids[:, :1], -100), batch.targets.masked_fill(~batch.mask, -100)], 1)
    try:
        more = batch.context.media.arguments(ids.shape[1])
        output = inner(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, **more, return_dict=True)
        own = float(output.loss)
    except Exception as error:  # a model without a loss of its own, or one that needs more for it
        if out_of_memory(error):
            raise
        return True
    logits = output.logits.float()

    def far(predicted: Tensor, expected: Tensor) -> float:
        return abs(float(cross_entropy(predicted.flatten(0, 1), expected.flatten())) - own)

    return far(logits, labels) >= min(far(logits[:, :-1], labels[:, 1:]), 1e-3 * (1 + abs(own)))


def _tried(plain: Any, example: Mapping[str, Any] | None, longest: int) -> tuple[Batch, Tensor, frozenset[str]]:
    """A batch, the model's logits there, and the names of what was in it."""
    inputs = [{}] if example is not None else list(_sources(plain))
    for n, source in enumerate(inputs):
        try:
            batch, names = trial_batch(plain, example, longest, source)
            outputs = plain(batch)
            if outputs.dim() == 3 and outputs.shape[1] != batch.time:
                raise UserError(
                    f"{type(plain.inner).__name__} returns logits of {outputs.shape[1]} positions for {batch.time} ids "
                    f"({', '.join(sorted(names))}), so that no logit is known to be an id's: it reads an image's "
                    "vectors beside them, or makes blocks at once. Models whose ids hold symbols for an image, or that "
                    "attend to it, are taken"
                )
            return batch, outputs, names
        except UserError:
            if n + 1 == len(inputs):
                raise
        except Exception as error:  # whatever a model raises for an invented batch
            if out_of_memory(error):
                raise
            if n + 1 == len(inputs):
                raise _UnreadError(_unread(plain, example, longest, error)) from error
    raise UserError(
        f"{type(plain.inner).__name__} reads {plain.inner.main_input_name}, and no such input can be made up: give "
        "hf.adapt(model, example=batch) a batch as your collator makes it"
    )


class _UnreadError(UserError):
    """A batch that a model raises for."""


def _unread(plain: Any, example: Mapping[str, Any] | None, longest: int, error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    what = "the example" if example is not None else f"a batch of {min(longest, plain.limit or longest)} tokens"
    advice = (
        ": is it complete, as its collator makes it, and does model(**example) go through?" if example is not None
        else ". If it needs more than ids, give hf.adapt(model, example=batch) a batch as your collator makes it"
    )  # fmt: skip
    return f"{type(plain.inner).__name__} raised {type(error).__name__} on {what}: {line}{advice}"


def _longer(plain: Any) -> tuple[Batch, Tensor]:
    """A longer batch and its logits; where the model raises, the longest that it can read, which is its limit."""
    reads, fails = _TIME, min(_LONGER, plain.limit or _LONGER)
    try:
        return _tried(plain, None, fails)[:2]
    except _UnreadError:
        while fails - reads > 1:
            middle = (reads + fails) // 2
            try:
                _tried(plain, None, middle)
                reads = middle
            except _UnreadError:
                fails = middle
    batch, outputs, _ = _tried(plain, None, reads)
    plain.limit = batch.time
    return batch, outputs


def trial_batch(
    m: hf.HuggingFaceModel, example: Mapping[str, Any] | None, longest: int, source: Mapping[str, Tensor]
) -> tuple[Batch, frozenset[str]]:
    """Three rows of an example, or of invented ids of different lengths, one pad among them; and the names of all."""
    adapter: Any = m
    if example is not None:
        batch: Batch = adapter.batch(**_with_labels(m, example))
        # rows that have images first
        known = batch.context.media.known
        order = torch.arange(batch.size) if known is None else (known == 0).long().argsort(stable=True).cpu()
        return batch.select(order[:_ROWS].to(batch.history.device)), frozenset(example)
    time = min(longest, m.limit or longest)
    ids = _ids(m, time, m.target_vocab)
    pad = getattr(m.inner.config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < m.target_vocab:
        ids[0, 1] = pad
    lengths = torch.tensor([time, time - 1, max(time // 2, 2)])
    present = torch.arange(time) < lengths[:, None]
    labels = ids.masked_fill(~present, -100)
    read = source if m.is_encoder_decoder else {"input_ids": ids, "attention_mask": present.long()}
    return adapter.batch(**{k: v.to(m.inner.device) for k, v in {**read, "labels": labels}.items()}), frozenset(read)


def _with_labels(m: hf.HuggingFaceModel, example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with labels, where it is a batch of prompts."""
    batch = {name: value for name, value in example.items() if name not in ("replaceable", "rows")}
    if batch.get("labels") is not None:
        return batch
    if not m.is_encoder_decoder:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        return {**batch, "labels": ids if mask is None else ids.masked_fill(mask == 0, -100)}
    size = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    ids = _ids(m, min(_TIME, m.limit or _TIME), m.target_vocab)
    labels = ids[torch.arange(size) % _ROWS].to(m.inner.device)
    return {**{name: value for name, value in batch.items() if not name.startswith("decoder_")}, "labels": labels}


def _ids(m: hf.HuggingFaceModel, time: int, vocab: int) -> Tensor:
    """Ordinary symbols: none that has a meaning in the configuration, where there are others."""
    config = m.inner.config.get_text_config(decoder=True)
    special = {v for c in (m.inner.config, config) for k, v in c.to_dict().items() if k.endswith("token_id")
               and isinstance(v, int)}  # fmt: skip
    first = range(min(vocab, 1000))
    usable = torch.tensor([i for i in first if i not in special] or list(first))
    generator = torch.Generator().manual_seed(0)
    return usable[torch.randint(len(usable), (_ROWS, time), generator=generator)]


def _sources(m: hf.HuggingFaceModel) -> Iterator[dict[str, Tensor]]:
    """What an encoder may read, invented, one after another until the model takes it."""
    inner, name = m.inner, m.inner.main_input_name
    if not m.is_encoder_decoder:
        yield {}
    elif name == "input_ids":
        ids = _ids(m, 5, hf.table_of(inner.get_encoder()).weight.shape[0])
        yield {name: ids, "attention_mask": (torch.arange(5) < torch.tensor([[5], [4], [3]])).long()}
    else:
        generator = torch.Generator().manual_seed(0)
        for each, shape in _shapes(inner.config, name):
            # of patches the first two numbers are positions
            made = {each: torch.randn(shape, generator=generator).abs().to(inner.dtype)}
            if m.accepts("attention_mask") and each != "pixel_values":
                time = shape[1] if len(shape) == 2 or shape[1] > shape[2] else shape[2]
                yield {**made, "attention_mask": torch.ones(_ROWS, time, dtype=torch.int64)}
            yield made


def _shapes(config: Any, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the audio and images that a configuration speaks of."""
    parts = [config, *(getattr(config, part, None) for part in ("encoder", "audio_config", "vision_config"))]

    def number(*names: str) -> int | None:
        found = (getattr(part, each, None) for part in parts for each in names)
        return next((value[0] if isinstance(value, list | tuple) else value for value in found if value), None)

    if name in ("inputs", "input_features") and (mel := number("num_mel_bins", "input_feat_per_channel")):
        if positions := number("max_source_positions"):
            yield "input_features", (_ROWS, mel, 2 * positions)
        yield "input_features", (_ROWS, 8 * mel, mel)
    if name in ("inputs", "input_values"):
        yield "input_values", (_ROWS, 4000)
    if name == "pixel_values" and (size := number("image_size")):
        yield name, (_ROWS, number("num_channels") or 3, size, size)
    if name == "flattened_patches" and (size := number("patch_embed_hidden_size")):
        yield name, (_ROWS, 8, size + 2)


@dataclass(frozen=True, eq=False)
class _Spread(Probe):
    """A probe whose tolerance is a share of how far a position's logits lie apart: their common part means nothing."""

    share: float

    @property
    def tolerance(self) -> float:
        """The share of the largest deviation from a position's mean."""
        logits = self.outputs[self.batch.mask].float()
        return self.share * float((logits - logits.mean(-1, keepdim=True)).abs().max())


def _roundings(outputs: Tensor, single: float, half: float) -> float:
    """Return a number of roundings of the outputs' type, one for float32 and one for half precision."""
    kind = outputs.dtype
    wide = kind in (torch.float32, torch.float64)  # models in float64 have parts in float32
    return single * torch.finfo(torch.float32).eps if wide else half * torch.finfo(kind).eps


_SHAPED = ("length_inert", "rows_independent")
"""Checks that compare calls of different shapes."""

_AT_LENGTH = ("finite", *_SHAPED, "deterministic")

_HELD = (
    "deterministic", "finite", "logits", "reads_targets", "causal", "unshifted_history", "reads_last_entry",
    "pads_inert", *_SHAPED, "uses_history",
)  # fmt: skip
"""Checks of a forward that every model must hold; those of a batch and of its context mean nothing here."""


def _keeps_all(probe: Probe) -> Verdict:
    """The cache holds keys and values."""
    state = probe.model.start(probe.batch)
    if hasattr(state, "cache") and not hf.keeps_all(state.cache):
        return "the cache holds recurrent states, which take one entry at a time"
    return None


_CHECKS = {**CHECKS, "keeps_all": Check(_keeps_all, "the first state", "step by step")}


def _encoded_rows(probe: Probe) -> Verdict:
    """Rows of an encoded batch are theirs."""
    batch = probe.batch
    encoded = probe.model.encode(batch)
    if encoded is batch:
        return ("not applicable", "the model encodes within its forward")
    turned = torch.arange(batch.size - 1, -1, -1, device=batch.history.device)
    for rows in (turned, turned[:1]):
        outputs, counted = probe.run(encoded.select(rows), "rows of an encoded batch"), batch.mask[rows]
        if far := probe.apart(outputs[counted], probe.outputs[rows][counted]):
            return f"outputs of rows selected from an encoded batch are {far:.2g} away from theirs"
    return None


_CHECKS["encoded_rows"] = Check(_encoded_rows, "rows of an encoded batch", "the source is encoded in every pass")
_STEPPER = ("step_equals_parallel", "stepper_state", "stepper_select")
_READER = ("keeps_all", "read_equals_steps")
_CAPABILITIES: dict[str, tuple[tuple[str, ...], str]] = {
    "split": (("split_equals_forward",), "the vocabulary can be read at a few positions"),
    "step": (_STEPPER, "the model's own cache gives the logits of the forward"),
    "read": (_READER, "several entries can be read at once"),
    "cached": ((*_STEPPER, *_READER, "cache_equals_forward"), "rows can be read at positions of their own"),
    "encode": (("encode_equals_forward", "encoded_rows"), "sources and images are encoded once"),
    "vectors": (("vectors_equal_ids",), "histories can be vectors"),
}
