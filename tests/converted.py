"""Tiny models of Hugging Face, and ours with the same weights."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PegasusConfig, PegasusForConditionalGeneration

from freerun.models.transformer import TransformerLM, TransformerSeq2Seq

PAD, BOS, END = 0, 1, 3
VOCAB = 13
LONGEST = 32


def llama(tied: bool, dtype: torch.dtype) -> LlamaForCausalLM:
    """A random Llama. In float64 its norms are torch's: its own go through float32 for every input type."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LONGEST, rms_norm_eps=1e-6, tie_word_embeddings=tied, pad_token_id=PAD,
        bos_token_id=BOS, eos_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().to(dtype)
    if dtype == torch.float64:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "LlamaRMSNorm":
                    setattr(parent, name, nn.RMSNorm(16, eps=1e-6, dtype=dtype))
    _shake(model)
    return model


def pegasus(activation: str, dtype: torch.dtype) -> PegasusForConditionalGeneration:
    """A random Pegasus: layer norms before, biases everywhere, sines for positions."""
    config = PegasusConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=LONGEST,
        activation_function=activation, scale_embedding=False, pad_token_id=PAD, eos_token_id=END,
        decoder_start_token_id=BOS, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = PegasusForConditionalGeneration(config).eval().to(dtype)
    _shake(model)
    return model


def _shake(model: nn.Module) -> None:
    """Random weights large enough for the model to depend on its inputs, norms and biases among them."""
    generator = torch.Generator().manual_seed(6)  # with it some rows end early and some never
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:  # not the sines
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                scale = 0.35 if "embed" in name or "shared" in name else 0.5
                weight.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else scale * noise)


def language_model(hf: LlamaForCausalLM) -> TransformerLM:
    """The Llama as a TransformerLM, whose start vector is what the begin symbol is looked up as."""
    config, dtype = hf.config, hf.dtype
    ours = TransformerLM(
        config.vocab_size, size=config.hidden_size, layers=config.num_hidden_layers, heads=config.num_attention_heads,
        feed_forward=config.intermediate_size, positions="rope", activation="swiglu", norm="rms", bias=False,
        tied=config.tie_word_embeddings, max_positions=LONGEST,
    ).to(dtype)  # fmt: skip
    weights = {
        "embedding.weight": hf.model.embed_tokens.weight,
        "start_vector": hf.model.embed_tokens.weight[BOS],
        "norm.weight": hf.model.norm.weight,
        "out.weight": hf.lm_head.weight,
    }
    for n, layer in enumerate(hf.model.layers):
        q, k = (_neighbours(part.weight, ours.shape.heads) for part in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        weights |= {
            f"blocks.{n}.norm.weight": layer.input_layernorm.weight,
            f"blocks.{n}.attention.project.weight": torch.cat([q, k, layer.self_attn.v_proj.weight]),
            f"blocks.{n}.attention.out.weight": layer.self_attn.o_proj.weight,
            f"blocks.{n}.feed_norm.weight": layer.post_attention_layernorm.weight,
            f"blocks.{n}.feed.enter.weight": torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
            f"blocks.{n}.feed.out.weight": layer.mlp.down_proj.weight,
        }
    ours.load_state_dict(weights)
    if dtype == torch.float64:
        # theirs are angles rounded to float32 whatever the type
        turn = torch.stack([each[0, :, : ours.shape.width // 2] for each in _angles(hf)], -1)
        ours.positions.turn.copy_(turn[:, None])
    return ours


def _angles(hf: LlamaForCausalLM) -> tuple[Tensor, Tensor]:
    return hf.model.rotary_emb(hf.lm_head.weight, torch.arange(LONGEST)[None])


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection so that the pairs turned together, half a head apart in theirs, are neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def translator(hf: PegasusForConditionalGeneration) -> TransformerSeq2Seq:
    """The Pegasus as a TransformerSeq2Seq, whose start vector is what the decoder's start symbol is looked up as."""
    config, theirs = hf.config, hf.model
    ours = TransformerSeq2Seq(
        config.vocab_size, config.vocab_size, size=config.d_model, layers=config.decoder_layers,
        heads=config.decoder_attention_heads, feed_forward=config.decoder_ffn_dim, positions="learned",
        activation=config.activation_function, norm="layer", bias=True, max_positions=LONGEST,
    ).to(hf.dtype)  # fmt: skip
    assert not hf.final_logits_bias.any()  # ours has none
    shared = theirs.shared.weight
    weights = {"embedding.weight": shared, "out.weight": shared, "start_vector": shared[config.decoder_start_token_id]}
    weights["encoder.embedding.weight"] = shared
    for prefix, side in (("encoder.", theirs.encoder), ("", theirs.decoder)):
        weights[f"{prefix}positions.learned.weight"] = side.embed_positions.weight
        weights |= _linear(f"{prefix}norm", side.layer_norm)
        for n, layer in enumerate(side.layers):
            weights |= _pegasus_layer(f"{prefix}blocks.{n}", layer)
    ours.load_state_dict(weights)
    return ours


def _pegasus_layer(name: str, layer: nn.Module) -> dict[str, Tensor]:
    own = layer.self_attn
    weights = _linear(f"{name}.norm", layer.self_attn_layer_norm)
    weights |= _linear(f"{name}.attention.project", own.q_proj, own.k_proj, own.v_proj)
    weights |= _linear(f"{name}.attention.out", own.out_proj)
    if hasattr(layer, "encoder_attn"):
        cross = layer.encoder_attn
        weights |= _linear(f"{name}.cross_norm", layer.encoder_attn_layer_norm)
        weights |= _linear(f"{name}.cross.query", cross.q_proj)
        weights |= _linear(f"{name}.cross.project", cross.k_proj, cross.v_proj)
        weights |= _linear(f"{name}.cross.out", cross.out_proj)
    weights |= _linear(f"{name}.feed_norm", layer.final_layer_norm)
    weights |= _linear(f"{name}.feed.enter", layer.fc1)
    return weights | _linear(f"{name}.feed.out", layer.fc2)


def _linear(name: str, *parts: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{kind}": torch.cat([getattr(part, kind) for part in parts]) for kind in ("weight", "bias")}
