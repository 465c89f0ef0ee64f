"""From a Hugging Face model to a Model of freerun that can do what probes show it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from freerun.batch import Batch
from freerun.checks.report import Finding
from freerun.errors import UserError, out_of_memory
from freerun.integrations.hf_probes import at_length, capability, local, refusals, trial_batch
from freerun.models.huggingface import (
    CachedDecoding,
    CausalModel,
    ChunkedDecoding,
    EmbeddingInputs,
    EncoderDecoder,
    HuggingFaceModel,
    RaggedDecoding,
    SplitHead,
)
from freerun.rollin.model import eval_mode, refuse_coupled_rows


def unwrapped(model: nn.Module) -> Any:
    """The ``PreTrainedModel`` within DDP, ``torch.compile``, PEFT and their like, in any order."""
    from transformers import PreTrainedModel

    inner: Any = model
    for _ in range(10):
        if isinstance(inner, PreTrainedModel):
            return inner
        if getattr(inner, "peft_config", None):
            _refuse_prompts(inner)
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


def _refuse_prompts(model: Any) -> None:
    for name, config in model.peft_config.items():
        if config.is_prompt_learning:
            raise UserError(
                f"the PEFT adapter {name!r} ({type(config).__name__}) puts learnt vectors before every sequence, which "
                "a history rolled in without them would not see: use LoRA or another adapter that changes weights"
            )


_LONGER = 64
"""Positions of the longer trial batch, where the model has as many."""


class _Able:
    """What probes found: the parts of the class, and whether the model comes in halves."""

    def __init__(self, bases: tuple[type[HuggingFaceModel], ...], halves: bool, findings: tuple[Finding, ...]) -> None:
        self.bases = bases
        self.halves = halves
        self.findings = findings


_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, _Able]] = WeakKeyDictionary()


def adapt(model: nn.Module, example: Mapping[str, Any] | None = None) -> Any:
    """A Hugging Face model as a Model: ``m(m.batch(**collated))`` are its logits, aligned with the targets.

    Nothing is known of families. A few forwards on a small batch show whether the model is causal, where its last
    hidden vectors are, whether it takes embeddings, and whether it goes on over a cache; what it cannot do is left
    out (``m.findings`` says why), and roll-ins take an engine that does without.

    Args:
        model: a ``PreTrainedModel`` that generates, alone or within DDP, FSDP2, ``torch.compile`` or PEFT. What is
            differentiated goes through it as given; roll-ins go through the model within.
        example: a collated batch to try the model on, where none can be made up: audio, images.

    Returns:
        A ``torch.nn.Module`` with ``batch``, ``inputs`` and the methods of the protocols in ``freerun.types`` that the
        model honours; it shares all weights with ``model``.

    Raises:
        UserError: the model breaks the contract (by the name of the probe), or an example is needed.

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
    kind = (inner.config._attn_implementation, inner.dtype, _example_key(example))
    found = _KNOWN.get(inner)
    # what was found on an example holds where none is given
    if found is None or found[0][:2] != kind[:2] or (example is not None and found[0] != kind):
        found = (kind, _examined(inner, example))
        _KNOWN[inner] = found
    able = found[1]
    return _made(model, inner, able.bases, able.halves, able.findings)


def _example_key(example: Mapping[str, Any] | None) -> tuple[str, ...]:
    return () if example is None else tuple(sorted(example))


def _made(
    model: nn.Module,
    inner: Any,
    bases: tuple[type[HuggingFaceModel], ...],
    halves: bool,
    findings: tuple[Finding, ...] = (),
) -> Any:
    name = "".join(base.__name__ for base in bases)
    made = type(name, bases, {"__reduce__": _reduced})(model, inner)
    made.findings = findings
    if halves:
        made._halves = _halves(made)
    # a new module is in training mode; the model's own mode is what counts
    made.training = model.training
    return made


def _reduced(made: HuggingFaceModel) -> tuple[Any, ...]:
    """How it is pickled and copied: its class is made by what the model can do."""
    bases = type(made).__bases__
    return _made, (made.model, made.inner, bases, isinstance(made._halves, SplitHead), made.findings)


def _halves(made: HuggingFaceModel) -> SplitHead:
    inner = made.inner
    trunk = inner.get_decoder()
    while trunk.get_output_embeddings() is not None and trunk.base_model is not trunk:
        trunk = trunk.base_model  # a decoder that is a model with a head itself

    def stub(hidden: torch.Tensor) -> dict[str, Any]:
        one = torch.zeros(1, 1, dtype=torch.int64, device=hidden.device)
        if not made.is_encoder_decoder:
            return {"input_ids": one}
        from transformers.modeling_outputs import BaseModelOutput

        return {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden[:, :1]), "decoder_input_ids": one}  # pyright: ignore

    return SplitHead(inner, trunk, stub)


@torch.no_grad()
def _examined(inner: Any, example: Mapping[str, Any] | None) -> _Able:
    if not inner.can_generate():
        raise UserError(
            f"{type(inner).__name__} does not generate: freerun trains models that say one entry after another "
            "(AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)"
        )
    refuse_coupled_rows(inner)
    base = EncoderDecoder if inner.config.is_encoder_decoder else CausalModel
    with eval_mode(inner):
        plain = _made(inner, inner, (base,), halves=False)
        batch, outputs, longer = _tried(plain, example)
        findings = [*refusals(plain, batch, outputs), *at_length(plain, longer)]
        # what a checked model is only warned of: an adapted one that reads no history is an encoder
        against = ("refused", "warning")
        if refused := [finding for finding in findings if finding.status in against]:
            name = type(inner).__name__
            raise UserError([f"{name}: {finding.name}: {finding.explanation}" for finding in refused])
        return _capabilities(inner, base, (batch, outputs), findings)


def _tried(plain: Any, example: Mapping[str, Any] | None) -> tuple[Batch, Tensor, Batch]:
    """A small batch, the model's logits there, and a longer batch."""
    try:
        batch = trial_batch(plain, example)
        return batch, plain(batch), trial_batch(plain, example, _LONGER)
    except UserError:
        raise
    except Exception as error:  # whatever a model raises for what was made up for it
        if out_of_memory(error):
            raise
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{type(plain.inner).__name__} raised {type(error).__name__} on a small batch: {line}. If it needs more "
            "than ids, give hf.adapt(model, example=batch) a batch as your collator makes it"
        ) from error


def _capabilities(
    inner: Any, base: type[HuggingFaceModel], tried: tuple[Batch, Tensor], findings: list[Finding]
) -> _Able:
    def has(what: str, *bases: type[HuggingFaceModel], halves: bool) -> bool:
        findings.append(capability(what, _made(inner, inner, (*bases, base), halves), *tried))
        return findings[-1].status == "ok"

    halves = has("split", halves=True)
    able: list[type[HuggingFaceModel]] = []
    if base is CausalModel and not local(inner.config) and has("cached", RaggedDecoding, halves=halves):
        able.append(RaggedDecoding)
    elif has("step", CachedDecoding, halves=halves):
        able.append(ChunkedDecoding if has("read", ChunkedDecoding, halves=halves) else CachedDecoding)
    if has("vectors", EmbeddingInputs, halves=halves):
        able.append(EmbeddingInputs)
    return _Able((*able, base), halves, tuple(findings))
