"""Tiny random models that read images or audio beside ids, and batches for them from arrays."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from families import shake
from oracles_hf import Row, causal_rows

IMAGE, PAD, VOCAB = 40, 0, 48
TEXT = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 96, "pad_token_id": PAD,
        "bos_token_id": 1, "eos_token_id": None}  # fmt: skip
_CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 8, "patch_size": 4, "projection_dim": 16}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_PROMPTS = ((5, 2), (4, 1), (6, 0), (3, 2))
"""Of each row: ids of text in the prompt, and images."""
_COMPLETIONS = (5, 3, 6, 4)


@dataclass(frozen=True)
class MediaFamily:
    """One tiny configuration: how it is built, and how images become arguments and tokens.

    Args:
        config: makes the configuration.
        model: the class in transformers.
        images: from images a row to the arguments of the forward, and each image's tokens in their order.
        double: whether it computes in float64 from end to end.
    """

    config: Callable[[Any], Any]
    model: str
    images: Callable[[list[int], torch.Generator], tuple[dict[str, Tensor], list[int]]]
    double: bool = True
    kinds: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] | None = None  # by token: ids, mask, labels
    weights: tuple[float, ...] = (3, 0.3, 2.2)

    def build(self) -> Any:
        import transformers

        torch.manual_seed(0)
        config = self.config(transformers)
        model = getattr(transformers, self.model)(config).to(torch.float64 if self.double else torch.float32).eval()
        shake(model, *self.weights)
        return model

    def inputs(self, padding: str = "right", images: list[int] | None = None) -> dict[str, Tensor]:
        """What a collator makes of four rows, with ``images`` a row (``_PROMPTS`` has the usual ones)."""
        g = torch.Generator().manual_seed(5)
        counts = [n for _, n in _PROMPTS] if images is None else images
        given, lengths = self.images(counts, g)
        rows: list[Tensor] = []
        left = iter(lengths)
        for (text, _), number, completion in zip(_PROMPTS, counts, _COMPLETIONS, strict=True):
            parts = [torch.randint(4, IMAGE, (1,), generator=g)]
            for _ in range(number):
                parts += [torch.full((next(left),), IMAGE), torch.randint(4, IMAGE, (1,), generator=g)]
            parts += [
                torch.randint(4, IMAGE, (text,), generator=g),
                torch.randint(4, IMAGE, (completion,), generator=g),
            ]
            rows.append(torch.cat(parts))
        time = max(map(len, rows))
        ids = torch.full((len(rows), time), PAD)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for r, (row, completion) in enumerate(zip(rows, _COMPLETIONS, strict=True)):
            begin = 0 if padding == "right" else time - len(row)
            ids[r, begin : begin + len(row)], mask[r, begin : begin + len(row)] = row, 1
            labels[r, begin + len(row) - completion : begin + len(row)] = row[-completion:]
        dtype = torch.float64 if self.double else torch.float32
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
        by_token = {} if self.kinds is None else self.kinds(ids, mask, labels)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **given, **by_token}

    def rows(self, inputs: dict[str, Tensor], numbers: list[int], images: list[int] | None = None) -> list[Row]:
        """The rows of these inputs as a model gets them by themselves."""
        counts = [n for _, n in _PROMPTS] if images is None else images
        made: list[Row] = []
        for r, (row, number) in enumerate(zip(causal_rows(inputs, numbers), counts, strict=True)):
            own = {name: self._own(name, inputs, r, counts) for name in inputs if name.startswith(("pixel", "image"))}
            own = own if number else {}
            if self.kinds is not None:
                own |= {
                    name: partial(self._kind, name, row.prompt + 1) for name in self.kinds(*[torch.zeros(1, 1)] * 3)
                }
            made.append(replace(row, source=own))
        return made

    def _own(self, name: str, inputs: dict[str, Tensor], r: int, counts: list[int]) -> Tensor:
        value, begin, number = inputs[name], sum(counts[:r]), counts[r]
        if "pixel_attention_mask" in inputs:
            return value[r : r + 1, :number]
        if name == "pixel_values" and (grid := inputs.get("image_grid_thw")) is not None:
            areas = grid.prod(-1)
            return value[int(areas[:begin].sum()) : int(areas[: begin + number].sum())]
        return value[begin : begin + number]

    def _kind(self, name: str, prompt: int, ids: Tensor) -> Tensor:
        assert self.kinds is not None
        labels = torch.where(torch.arange(ids.shape[1]) < prompt, -100, ids)
        return self.kinds(ids, torch.ones_like(ids), labels)[name]


def _plain(tokens: int, size: int = 8) -> Any:
    def images(counts: list[int], g: torch.Generator) -> tuple[dict[str, Tensor], list[int]]:
        number = sum(counts)
        return {"pixel_values": torch.randn(number, 3, size, size, generator=g)}, [tokens] * number

    return images


def _anyres(counts: list[int], g: torch.Generator) -> tuple[dict[str, Tensor], list[int]]:
    sizes = torch.tensor([[8, 8], [16, 8], [8, 16], [8, 8], [16, 8]][: sum(counts)])
    pixels = torch.randn(sum(counts), 3, 3, 8, 8, generator=g)
    lengths = {(8, 8): 10, (16, 8): 16, (8, 16): 14}  # base, best resolution, a newline after each line
    return {"pixel_values": pixels, "image_sizes": sizes}, [lengths[tuple(s)] for s in sizes.tolist()]


def _grids(counts: list[int], g: torch.Generator) -> tuple[dict[str, Tensor], list[int]]:
    grid = torch.tensor([[1, 4, 4], [1, 2, 4], [1, 4, 2], [1, 2, 2], [1, 4, 4]][: sum(counts)]).view(-1, 3)
    patches = int(grid.prod(-1).sum())
    pixels = torch.randn(patches, 3 * 1 * 4 * 4, generator=g)
    return {"pixel_values": pixels, "image_grid_thw": grid}, (grid.prod(-1) // 4).tolist()


def _padded(tokens: int, size: int = 8) -> Any:
    def images(counts: list[int], g: torch.Generator) -> tuple[dict[str, Tensor], list[int]]:
        pixels = torch.randn(len(counts), max(counts), 3, size, size, generator=g)
        there = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        mask = there[..., None, None].expand(-1, -1, size, size).long()
        return {"pixel_values": pixels * mask[:, :, None], "pixel_attention_mask": mask}, [tokens] * sum(counts)

    return images


def _types(ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).long()}


def _blocks(ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE).long()}


def _suffix(ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (labels != -100).long()}


def _llava(tf: Any, **more: Any) -> Any:
    return tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**_CLIP), text_config=tf.LlamaConfig(**TEXT),
                          image_token_id=IMAGE, image_token_index=IMAGE, image_seq_length=4, **more)  # fmt: skip


def _qwen_vision(**more: Any) -> dict[str, Any]:
    return {"depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 1, "spatial_merge_size": 2, **more}


def _qwen2(tf: Any) -> Any:
    vision = _qwen_vision(embed_dim=16, hidden_size=16, mlp_ratio=2)
    return tf.Qwen2VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": _MROPE},
                            image_token_id=IMAGE, video_token_id=IMAGE + 1)  # fmt: skip


def _qwen25(tf: Any) -> Any:
    vision = _qwen_vision(hidden_size=16, out_hidden_size=16, intermediate_size=24, fullatt_block_indexes=[1],
                          window_size=8)  # fmt: skip
    return tf.Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": _MROPE},
                               image_token_id=IMAGE, video_token_id=IMAGE + 1)  # fmt: skip


def _qwen3(tf: Any) -> Any:
    vision = _qwen_vision(hidden_size=16, out_hidden_size=16, intermediate_size=24, deepstack_visual_indexes=[0],
                          num_position_embeddings=16)  # fmt: skip
    rope = {**_MROPE, "mrope_interleaved": True}
    return tf.Qwen3VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": rope}, image_token_id=IMAGE,
                            video_token_id=IMAGE + 1)  # fmt: skip


def _siglip(tf: Any, **more: Any) -> Any:
    return tf.SiglipVisionConfig(**{**_CLIP, "projection_dim": 16, "vision_use_head": False, **more})


def _gemma3(tf: Any) -> Any:
    text = tf.Gemma3TextConfig(**{**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8})
    return tf.Gemma3Config(text_config=text, vision_config=_siglip(tf), mm_tokens_per_image=4, image_token_index=IMAGE,
                           boi_token_index=41, eoi_token_index=42)  # fmt: skip


def _paligemma(tf: Any) -> Any:
    return tf.PaliGemmaConfig(text_config=tf.GemmaConfig(**TEXT), vision_config=_siglip(tf), image_token_index=IMAGE,
                              projection_dim=16, hidden_size=16, vocab_size=VOCAB)  # fmt: skip


def _idefics2(tf: Any) -> Any:
    perceiver = {"resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8,
                 "num_key_value_heads": 1, "hidden_size": 16}  # fmt: skip
    vision = {k: v for k, v in _CLIP.items() if k != "projection_dim"}
    return tf.Idefics2Config(vision_config=vision, perceiver_config=perceiver, image_token_id=IMAGE,
                             text_config=tf.MistralConfig(**TEXT, sliding_window=None))  # fmt: skip


def _idefics3(tf: Any, kind: str = "Idefics3") -> Any:
    vision = {k: v for k, v in _CLIP.items() if k != "projection_dim"}
    return getattr(tf, f"{kind}Config")(vision_config=vision, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD,
                                        text_config=tf.LlamaConfig(**TEXT))  # fmt: skip


MEDIA: dict[str, MediaFamily] = {
    "llava": MediaFamily(_llava, "LlavaForConditionalGeneration", _plain(4)),
    "llava_next": MediaFamily(
        lambda tf: tf.LlavaNextConfig(vision_config=tf.CLIPVisionConfig(**_CLIP), text_config=tf.LlamaConfig(**TEXT),
                                      image_token_index=IMAGE, image_grid_pinpoints=[[8, 8], [8, 16], [16, 8]]),
        "LlavaNextForConditionalGeneration", _anyres),
    "qwen2_vl": MediaFamily(_qwen2, "Qwen2VLForConditionalGeneration", _grids, kinds=_types),
    "qwen2_5_vl": MediaFamily(_qwen25, "Qwen2_5_VLForConditionalGeneration", _grids, kinds=_types),
    "qwen3_vl": MediaFamily(_qwen3, "Qwen3VLForConditionalGeneration", _grids, kinds=_types),
    "gemma3": MediaFamily(_gemma3, "Gemma3ForConditionalGeneration", _plain(4), double=False, kinds=_blocks,
                          weights=(2, 0.1, 2.2)),
    "paligemma": MediaFamily(_paligemma, "PaliGemmaForConditionalGeneration", _plain(4), double=False, kinds=_suffix,
                             weights=(2, 0.1, 2.2)),
    "idefics2": MediaFamily(_idefics2, "Idefics2ForConditionalGeneration", _padded(3), weights=(2, 0.3, 2.2)),
    "idefics3": MediaFamily(_idefics3, "Idefics3ForConditionalGeneration", _padded(1), weights=(2, 0.3, 2.2)),
    "smolvlm": MediaFamily(lambda tf: _idefics3(tf, "SmolVLM"), "SmolVLMForConditionalGeneration", _padded(1),
                           weights=(2, 0.3, 2.2)),
}  # fmt: skip
