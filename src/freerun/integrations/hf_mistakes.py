"""Mistakes in labels, tokenizers and collators that a first optimizer step shows, each with the line that mends it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from freerun.errors import listed
from freerun.models.pretrained import end_ids

Inputs = Mapping[str, Any]


def tokenizer_of(trainer: Any) -> Any:
    """The trainer's tokenizer, or that of its processor; None: there is none."""
    processing = getattr(trainer, "processing_class", None)
    found = getattr(processing, "tokenizer", processing)
    return found if hasattr(found, "__len__") or hasattr(found, "batch_decode") else None


def tokenizer_problems(trainer: Any, inner: Any) -> list[str]:
    """Return what is wrong with a tokenizer: not the model's, or unable to pad."""
    tokenizer, problems = tokenizer_of(trainer), list[str]()
    if tokenizer is not None and hasattr(tokenizer, "__len__"):
        # the weight: around a table PEFT puts modules of its own
        known = inner.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > known:
            problems.append(
                f"the tokenizer has {len(tokenizer)} symbols and the model {known}: take the model's own tokenizer, or "
                "model.resize_token_embeddings(len(tokenizer))"
            )
    padding = getattr(trainer.data_collator, "tokenizer", None)
    if padding is not None and getattr(padding, "pad_token", "") is None:
        problems.append(
            "the collator's tokenizer has no pad token, so that rows of different length cannot be made one batch: "
            "tokenizer.pad_token = tokenizer.eos_token (labels of padding are -100, so nothing is learnt from it)"
        )
    return problems


def label_problems(trainer: Any, adapter: Any, samples: Sequence[Inputs]) -> list[str]:
    """Return the mistakes that every row of a first optimizer step shows.

    Args:
        trainer: whose tokenizer is read; None: there is none.
        adapter: of its model.
        samples: the step's micro-batches, with labels.
    """
    rows = [row for sample in samples for row in _rows(adapter, sample)]
    if not rows:
        return []
    odd = {int(row.whole.min()) for row in rows} - {-100}
    if odd := sorted(each for each in odd if each < 0):
        return [
            f"labels hold {odd[0]}, which is no id; what is not learnt is -100: "
            "labels = labels.masked_fill(labels < 0, -100)"
        ]
    if masks := _mask_problems(trainer, adapter, samples):
        return masks
    found = _decoder_problems(adapter, rows) if adapter.is_encoder_decoder else _causal_problems(trainer, adapter, rows)
    return [*found, *_padding_problems(trainer, adapter, rows)]


def label_notices(trainer: Any, adapter: Any, samples: Sequence[Inputs]) -> None:
    """Warn of what may be meant: rows without labels, labels without an end, prompts among the labels."""
    rows = [row for sample in samples for row in _rows(adapter, sample)]
    learnt = [row for row in rows if row.counted.any()]
    if len(learnt) < len(rows):
        warnings.warn(
            f"{len(rows) - len(learnt)} of the {len(rows)} rows of the first optimizer step have no label: was the "
            "completion cut off with the prompt at max_length?",
            stacklevel=2,
        )
    tokenizer = tokenizer_of(trainer)
    end = getattr(tokenizer, "eos_token_id", None)
    prompted = adapter.is_encoder_decoder or all(not bool(row.counted[0]) for row in learnt)
    if end is not None and learnt and prompted and not any(bool((row.labels == end).any()) for row in learnt):
        warnings.warn(
            f"no label of the first optimizer step is the end symbol {tokenizer.eos_token!r} (id {end}), so the model "
            "is never taught to end: append tokenizer.eos_token to the texts (add_eos_token=True)",
            stacklevel=2,
        )
    if not prompted and getattr(tokenizer, "chat_template", None) and all(bool(row.counted.all()) for row in learnt):
        warnings.warn(
            "every token has a label, prompts and the user's turns too: completion_only_loss=True or "
            "assistant_only_loss=True of SFTConfig, or labels of -100 there, leave them out",
            stacklevel=2,
        )


class _Row:
    """One row of a collated batch, without what the mask hides; labels that are hidden are kept apart."""

    def __init__(self, adapter: Any, sample: Inputs, row: int) -> None:
        labels: Tensor = sample["labels"][row]
        ids, mask = sample.get("input_ids"), sample.get("attention_mask")
        aligned = not adapter.is_encoder_decoder and isinstance(ids, Tensor) and ids.shape == sample["labels"].shape
        there = torch.ones_like(labels, dtype=torch.bool)
        if aligned and isinstance(mask, Tensor) and mask.shape == sample["labels"].shape:
            there = mask[row].bool()
        self.whole, self.hidden = labels, bool((labels[~there] != -100).any())
        self.ids: Tensor | None = ids[row][there] if aligned and isinstance(ids, Tensor) else None
        self.labels = labels[there]
        self.counted = self.labels != -100
        fed = sample.get("decoder_input_ids")
        self.fed: Tensor | None = fed[row] if isinstance(fed, Tensor) and fed.shape == sample["labels"].shape else None
        self.shifted_already = fed is not None
        self.packed = sample.get("position_ids") is not None


def _rows(adapter: Any, sample: Inputs) -> Iterator[_Row]:
    labels = sample["labels"]
    if isinstance(labels, Tensor) and labels.dim() == 2 and labels.numel():
        yield from (row for r in range(len(labels)) if len((row := _Row(adapter, sample, r)).labels))


def _mask_problems(trainer: Any, adapter: Any, samples: Sequence[Inputs]) -> list[str]:
    """Masks that are missing, inverted or empty, by the pads among the ids."""
    pads, ends = _pads(trainer, adapter), set(end_ids(adapter.inner.generation_config))
    plain = [s for s in samples if isinstance(s.get("input_ids"), Tensor) and s.get("position_ids") is None]
    pairs = [(s["input_ids"], s.get("attention_mask")) for s in plain]
    unmasked = [row for ids, mask in pairs if mask is None and ids.dim() == 2 for row in ids]
    sides = (0, 1) if adapter.is_encoder_decoder else (0,)  # a decoder never reads what comes after its last token
    for pad in sorted(pads - ends):
        padded = sum(any(_trailing(row if side else row.flip(0), pad) > 1 for side in sides) for row in unmasked)
        if padded > 1:
            return [
                f"{padded} of {len(unmasked)} rows have padding (id {pad}) and the batch has no attention_mask: it "
                "would be read as text. Let the collator return attention_mask = (input_ids != pad_token_id).long()"
            ]
    masked = [(ids, mask.bool()) for ids, mask in pairs if isinstance(mask, Tensor) and mask.shape == ids.shape]
    if any(bool(((ids == pad) == mask).all()) and bool(mask.any()) for ids, mask in masked for pad in pads):
        return ["attention_mask is 1 on padding and 0 on text: it is inverted: attention_mask = 1 - attention_mask"]
    empty = sum(int((~mask.any(1)).sum()) for _, mask in masked)
    if empty:
        return [
            f"attention_mask hides all of {empty} rows: what is read has 1 in it, attention_mask = (input_ids != "
            "pad_token_id).long(); leave rows without any text out of the data"
        ]
    # a mask of what is learnt hides other ids in every row; padding is one id, even where no pad is known
    texts = [ids[~mask] for ids, mask in masked if not bool(mask.all())]
    hidden = torch.cat(texts) if texts else torch.zeros(0, dtype=torch.int64)
    known = torch.isin(hidden, torch.tensor(sorted(pads | ends), dtype=hidden.dtype, device=hidden.device))
    if len(hidden[~known].unique()) > 1 and all(_hides_text(ids, mask, pads | ends) for ids, mask in masked):
        return [
            f"attention_mask is 0 on tokens that are no padding, in every row (ids {listed(_some(hidden[~known]))}), "
            "and the model would not read them: prompts stay visible, and labels of -100 leave them out of the loss: "
            "attention_mask = (input_ids != pad_token_id).long()"
        ]
    return []


def _hides_text(ids: Tensor, mask: Tensor, pads: set[int]) -> bool:
    """Whether every row has a hidden id that is no pad."""
    kept = mask | torch.isin(ids, torch.tensor(sorted(pads), dtype=ids.dtype, device=ids.device))
    return not bool(kept.all(1).any())


def _some(ids: Tensor) -> list[str]:
    return [str(each) for each in ids.unique().tolist()[:3]]


def _pads(trainer: Any, adapter: Any) -> set[int]:
    known = (adapter.inner.config, tokenizer_of(trainer))
    return {pad for each in known if isinstance(pad := getattr(each, "pad_token_id", None), int)}


def _offset(rows: Sequence[_Row]) -> int | None:
    """How many positions before its label a decoder's input has the same id, by most of the labels; 1: as it should
    be, or in part; None: by hardly any."""
    found = dict.fromkeys((1, 0, 2), 0)
    for row in rows:
        assert row.fed is not None
        for by in found:
            end = len(row.whole) - by
            found[by] += int(((row.fed[by:] == row.whole[:end]) & (row.whole[:end] != -100)).sum())
    number = sum(int((row.whole[: len(row.whole) - 1] != -100).sum()) for row in rows)
    best = max(found, key=lambda by: found[by])
    if not number or found[1] >= 0.5 * number:
        return 1
    return best if found[best] >= 0.8 * number else None


def _decoder_problems(adapter: Any, rows: Sequence[_Row]) -> Iterator[str]:
    config, own = adapter.inner.config, adapter.inner.generation_config
    start = getattr(config, "decoder_start_token_id", None)
    learnt = [row for row in rows if row.counted.any()]
    offset = _offset(beside) if (beside := [row for row in learnt if row.fed is not None]) else 1
    if offset is None:
        yield (
            "decoder_input_ids are other ids than the labels before them: a method replaces the ids that are labels, "
            "and here it would replace next to none: leave them out of the batch: the model shifts its labels itself"
        )
    elif offset != 1:
        twice = "the labels shifted twice, so that the decoder never reads the token before the one it is to predict"
        what = twice if offset else "the labels themselves, so that the decoder reads what it is to predict"
        yield f"decoder_input_ids are {what}: leave them out of the batch: the model shifts its labels itself"
    if start is not None and learnt and not any(row.shifted_already for row in learnt):
        if all(int(row.whole[0]) == start for row in learnt):
            yield (
                f"the labels of every row begin with the decoder's start symbol {start}, which the model itself puts "
                "before them: it would be read twice, and predicted. Cut it in the collator: labels = labels[:, 1:]"
            )
        generated = getattr(own, "decoder_start_token_id", None)
        shifted: Tensor = adapter.shifted(torch.stack([row.whole[:1] for row in learnt]), len(learnt))
        first = set(shifted[:, 0].tolist())
        if generated is not None and generated != start and first == {start}:
            yield (
                f"training starts the decoder with {start} (model.config.decoder_start_token_id) and generation with "
                f"{generated} (model.generation_config): set both to the one that the model was trained with, "
                f"model.generation_config.decoder_start_token_id = {start}"
            )


def _causal_problems(trainer: Any, adapter: Any, rows: Sequence[_Row]) -> Iterator[str]:
    tokenizer = tokenizer_of(trainer)
    ends = {*end_ids(adapter.inner.generation_config), getattr(tokenizer, "eos_token_id", None)} - {None}
    plain = [row for row in rows if row.ids is not None and len(row.ids) > 1 and not row.packed]
    unlearnt = [row for row in plain if int(_ids(row)[-1]) in ends and bool(row.counted[-2]) and not row.counted[-1]]
    unseen = {int(_ids(row)[-1]) for row in unlearnt} - {each for row in plain for each in row.labels.tolist()}
    if unseen:
        yield (
            f"{len(unlearnt)} of {len(rows)} rows end with the end symbol {min(unseen)} and no label is "
            "one, so the model would never be taught to end. A collator that takes the pad for padding wherever it "
            "stands (DataCollatorForLanguageModeling) hides it where pad and end are one: give the tokenizer a pad of "
            "its own, tokenizer.add_special_tokens({'pad_token': '<pad>'}) and "
            "model.resize_token_embeddings(len(tokenizer)), or make the labels in the data"
        )
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is not None and plain and all(_ids(row)[:2].tolist() == [begin, begin] for row in plain):
        yield (
            f"every row begins with the start symbol {tokenizer.bos_token!r} twice: the chat template writes one and "
            "the tokenizer another: tokenizer(text, add_special_tokens=False)"
        )
    counted = [row for row in plain if row.counted.any()]
    own = sum(int((row.labels == _ids(row))[row.counted].sum()) for row in counted)
    following = sum(int((row.labels[:-1] == _ids(row)[1:])[row.counted[:-1]].sum()) for row in counted)
    number = sum(int(row.counted.sum()) for row in counted)
    if adapter.shifts and number and own < 0.5 * number < 0.8 * number <= following:
        yield (
            f"labels are the ids one position on ({following} of {number}): the collator has shifted them, and models "
            "and methods shift again, so that the token after the next would be learnt: labels = input_ids.clone()"
        )
    elif adapter.shifts and number and own < 0.5 * number:
        yield (
            f"{own} of {number} labels are the ids at their positions: a decoder's labels are its input ids, and -100 "
            "where nothing is learnt; a method replaces the ids that are labels, and here it would replace next to "
            "none: labels = input_ids.clone(), with labels[prompt] = -100"
        )


def _padding_problems(trainer: Any, adapter: Any, rows: Sequence[_Row]) -> Iterator[str]:
    hidden = sum(row.hidden for row in rows)
    if hidden:
        yield (
            f"{hidden} of {len(rows)} rows have labels on padding (attention_mask 0): "
            "labels = labels.masked_fill(attention_mask == 0, -100)"
        )
        return
    pads = _pads(trainer, adapter)
    ends = set(end_ids(adapter.inner.generation_config))
    runs = [(pad, sum(_trailing(row.whole, pad) > (pad in ends) for row in rows)) for pad in pads]
    pad, number = max(runs, key=lambda run: run[1], default=(None, 0))
    if pad is not None and number and not any(row.whole[-1] == -100 for row in rows):
        yield (
            f"the labels of {number} of {len(rows)} rows end with pads (id {pad}), which the model would be taught to "
            f"predict: labels = labels.masked_fill(labels == {pad}, -100), or DataCollatorForSeq2Seq, which pads "
            "labels with -100"
        )


def _trailing(labels: Tensor, pad: int) -> int:
    """How many ids at the end are the pad."""
    return int((labels.flip(0) == pad).long().cumprod(0).sum())


def _ids(row: _Row) -> Tensor:
    assert row.ids is not None
    return row.ids


def without_labels(trainer: Any, name: str) -> list[str]:
    """Return the problem of a trainer whose batches never hold labels, by the columns that it reads."""
    # transformers' own reads the model's forward, which a user's class may hide
    if type(trainer)._set_signature_columns_if_needed is Trainer._set_signature_columns_if_needed:
        return []
    trainer._set_signature_columns_if_needed()
    columns = trainer._signature_columns or ["labels"]
    if "labels" in columns:
        return []
    return [
        f"{name} trains without labels (it reads {', '.join(columns)}), and a method replaces entries of a history "
        "that labels predict: freerun.hf.MethodMixin goes before trainers that learn labels (Trainer, Seq2SeqTrainer, "
        "SFTTrainer)"
    ]
