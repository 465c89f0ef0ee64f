"""Ways to break the Hugging Face adapters and the roll-in, and the tests that each must turn red."""

from dataclasses import dataclass

_HF = "models/huggingface/"
_FAMILIES = "tests/test_hf_families.py::"
_TRAPS = "tests/test_hf_traps.py::"

ONE = _FAMILIES + "test_ratio_one_is_the_models_own_loss_and_gradient"
ZERO = _FAMILIES + "test_ratio_zero_is_generate"
MIXED = _FAMILIES + "test_mixed_histories_are_the_full_prefix_oracles"
BACK = _FAMILIES + "test_inputs_are_the_models_own_arguments"
CHECK = _FAMILIES + "test_a_family_passes_its_check_and_keeps_what_it_can"
STATES = _FAMILIES + "test_a_state_may_be_left_and_come_back_to"
DROPOUT = _TRAPS + "test_dropout_rests_in_the_roll_in_and_works_in_the_loss"
PADS = _TRAPS + "test_a_models_own_pad_and_start_are_symbols_like_others"
END = _TRAPS + "test_an_end_symbol_that_the_model_says_ends_nothing"


@dataclass(frozen=True)
class Mutation:
    """One wrong line.

    Args:
        name: what is wrong.
        file: under ``src/freerun``.
        right: text that stands there exactly ``times`` times.
        wrong: what is put in its place.
        tests: those of which at least one must fail.
        times: how often the text stands there.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]
    times: int = 1


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "no shift: a token sees itself", _HF + "causal.py",
        'told = {"input_ids": torch.cat([context.first, history], 1)}',
        'told = {"input_ids": torch.cat([history, history[:, -1:]], 1)}',
        (ONE + "[gpt2-float64]", ZERO + "[gpt2]"),
    ),
    Mutation(
        "double shift: a token sees too little", _HF + "causal.py",
        'told = {"input_ids": torch.cat([context.first, history], 1)}',
        'told = {"input_ids": torch.cat([context.first, context.first, history[:, :-1]], 1)}',
        (ONE + "[gpt2-float64]", ZERO + "[gpt2]"),
    ),
    Mutation(
        "no shift in a decoder", _HF + "encoder_decoder.py",
        "history = torch.cat([fed[:, 1:], targets[:, -1:]], 1)", "history = fed.clone()",
        (ONE + "[bart-float64]", ZERO + "[bart]"),
    ),
    Mutation(
        "the start symbol is dropped", _HF + "encoder_decoder.py",
        "return SourceContext(fed[:, :1], source,", "return SourceContext(fed[:, :1] * 0, source,",
        (ONE + "[bart-float64]", ZERO + "[mbart]"),
    ),
    Mutation(
        "a language's id is a start symbol like others", _HF + "encoder_decoder.py",
        "if labels is not None and own is not None:", "if labels is ...:",
        (_TRAPS + "test_two_languages_in_one_batch_keep_their_ids",),
    ),
    Mutation(
        "padding on the left is taken for text", _HF + "causal.py",
        "present = mask.bool()", "present = torch.ones_like(mask).bool()",
        (ONE + "[gpt2-float64]", MIXED + "[gpt2-greedy]"),
    ),
    Mutation(
        "wrong positions after left padding, on the way back", _HF + "causal.py",
        "(mask.long().cumsum(1) - 1).clamp_min(0)", "torch.arange(mask.shape[1]).expand_as(mask)",
        (BACK + "[gpt2-left]", _TRAPS + "test_padding_enters_nothing"),
    ),
    Mutation(
        "wrong positions over the cache", _HF + "cache.py",
        'where = {"position_ids": places}', 'where = {"position_ids": places + (places > 4)}',
        (ZERO + "[gpt2]", CHECK + "[gpt2]"),
    ),
    Mutation(
        "coins hang on the padding", _HF + "causal.py",
        "numbers = _numbers(row, rows,", "numbers = (~present).sum(1)[row] + _numbers(row, rows,",
        (MIXED + "[llama-sample]", _TRAPS + "test_padding_enters_nothing"),
    ),
    Mutation(
        "prompts are replaced", _HF + "causal.py",
        "eligible = mask & (wanted == history)", "eligible = there[:, 1:]",
        (_FAMILIES + "test_counts_and_eligibility", ZERO + "[llama]"),
    ),
    Mutation(
        "prompts are learnt", _HF + "causal.py",
        "mask = wanted != -100", "mask = there[:, 1:]",
        (_FAMILIES + "test_counts_and_eligibility", ONE + "[llama-float64]"),
    ),
    Mutation(
        "pads are replaced", _HF + "encoder_decoder.py",
        "eligible = mask & (history == targets)", "eligible = torch.ones_like(mask)",
        (ZERO + "[t5]", _FAMILIES + "test_a_prefix_that_the_user_gives_is_never_replaced"),
    ),
    Mutation(
        "a prefix of the user's is replaced", _HF + "encoder_decoder.py",
        "eligible = mask & (history == targets)", "eligible = mask",
        (_FAMILIES + "test_a_prefix_that_the_user_gives_is_never_replaced",),
    ),
    Mutation(
        "packed documents are one text", _HF + "causal.py",
        "starts = present & ((positions == 0) | first)", "return first",
        (_FAMILIES + "test_packed_documents_are_rows_of_their_own",),
    ),
    Mutation(
        "the history comes back a place too early", _HF + "causal.py",
        "layout=Layout(given, places[:, 1:])", "layout=Layout(given, places[:, :-1])",
        (BACK + "[llama-right]",),
    ),
    Mutation(
        "the end symbol cuts the loss", "methods/scheduled_sampling.py",
        "return batch.made(history=rolled.history), report",
        "ended = (rolled.history == getattr(model.inner.config, 'eos_token_id', None) or -1) & batch.replaceable\n"
        "        gone = ended.cumsum(1) - ended.long() > 0\n"
        "        return batch.replace(history=rolled.history, mask=batch.mask & ~gone), report",
        (END,),
    ),
    Mutation(
        "the cache is not cropped", "rollin/window.py",
        "self.state = self.model.crop(self.state, at)", "pass",
        (MIXED + "[gpt2-sample]", MIXED + "[llama-greedy]"),
    ),
    Mutation(
        "the adapter's crop forgets nothing", _HF + "cache.py",
        "lengths=lengths + 1, alike=None)", "alike=None)",
        (CHECK + "[gpt2]", MIXED + "[gpt2-sample]"),
    ),
    Mutation(
        "rows picked from the cache are the first ones", _HF + "cache.py",
        "store = state.store.copied(rows)", "store = state.store.copied(torch.arange(len(rows)))",
        (CHECK + "[gpt2]",),
    ),
    Mutation(
        "rows picked from a stepped cache are the first ones", _HF + "cache.py",
        "cache.reorder_cache(rows)", "cache.reorder_cache(torch.arange(len(rows)))",
        (STATES + "[t5]", _FAMILIES + "test_beam_search_is_generates[bart]"),
    ),
    Mutation(
        "the cache is written in place", _HF + "cache.py",
        "past = {} if state is None else {state.name: _copied(state.cache)}",
        "past = {} if state is None else {state.name: state.cache}",
        (STATES + "[falcon_h1]", STATES + "[t5]"),
    ),
    Mutation(
        "sliding windows are ignored", "integrations/hf_adapt.py",
        "not local(inner.config) and ", "",
        (_TRAPS + "test_a_window_that_no_probe_reaches_is_kept",),
    ),
    Mutation(
        "soft-capping, scaling and bias are dropped", _HF + "model.py",
        "return output.logits.reshape(*shape[:-1], -1)",
        "return self.inner.get_output_embeddings()(hidden)",
        (CHECK + "[gemma2]", CHECK + "[cohere]", CHECK + "[bart]"),
    ),
    Mutation(
        "the encoder's mask is dropped", _HF + "encoder_decoder.py",
        'mask = {"attention_mask": context.source["attention_mask"]} if "attention_mask" in context.source else {}',
        "mask = {}",
        (ONE + "[t5-float64]", MIXED + "[t5-greedy]"),
    ),
    Mutation(
        "pads that the model says are hidden", _HF + "encoder_decoder.py",
        'mask = {"decoder_attention_mask": ones(context.first, size, time)}',
        'mask = {"decoder_attention_mask": (told["decoder_input_ids"] != 0).long()}',
        (PADS + "[bert2bert-0]", PADS + "[bart-0]"),
    ),
    Mutation(
        "dropout stays on in the roll-in", "rollin/model.py",
        "        module.training = False", "        module.training = True",
        (DROPOUT + "[gpt2]", DROPOUT + "[t5]"),
    ),
    Mutation(
        "modes are not restored", "rollin/model.py",
        "            module.training = True", "            module.training = False",
        (DROPOUT + "[gpt2]", _TRAPS + "test_modes_and_forwards_come_back_after_an_error[llama]"),
    ),
    Mutation(
        "roll-in and training share an encoding that dropout has touched", "methods/base.py",
        "not differs_by_mode(model)", "bool(model)",
        (DROPOUT + "[t5]", DROPOUT + "[bart]"),
    ),
    Mutation(
        "autocast keeps weights without a graph", "rollin/model.py",
        "if not torch.is_autocast_enabled(kind):", "if True:",
        (_TRAPS + "test_autocast_leaves_no_weight_behind",),
    ),
    Mutation(
        "roll-ins go through the wrapper", _HF + "model.py",
        "model = self.model if torch.is_grad_enabled() else self.inner", "model = self.model",
        (_TRAPS + "test_a_wrapper_sees_the_training_forward_and_nothing_else",),
    ),
    Mutation(
        "vectors are scaled twice", _HF + "model.py",
        "return self._embeddings()(entries)", "return 4 * self._embeddings()(entries)",
        (_TRAPS + "test_soft_mixtures_are_looked_up_as_the_model_looks_up_symbols[gemma2-none]",),
    ),
)  # fmt: skip
