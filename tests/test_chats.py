"""Which tokens of a conversation are learnt: an oracle by the text, over templates and tokenizers."""

import pytest

from builders import problems_of
from freerun.data.records import Limits, Record, RecordCodec, RecordOptions, fit_lengths, load_records, read_records
from huggingface_world import CHAT, MARKED, write_lines

TURNS = [
    {"role": "user", "content": "hello there"}, {"role": "assistant", "content": "Good morning, dear!"},
    {"role": "user", "content": "two cats"}, {"role": "assistant", "content": "twelve dogs\nand a bird"},
    {"role": "user", "content": "a man sleeps?"}, {"role": "assistant", "content": "He eats bread."},
]  # fmt: skip
SYSTEM = {"role": "system", "content": "be brief"}
_ALL, _BEGIN = "{% for m in messages %}", "{% if add_generation_prompt %}"
_DONE = "{% endfor %}" + _BEGIN
TEMPLATES = {
    "chatml": _ALL + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    + _DONE + "<|im_start|>assistant\n{% endif %}",
    "own system prompt": "{% if messages[0].role != 'system' %}<|im_start|>system\nhelp!<|im_end|>\n{% endif %}"
    + _ALL + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + _DONE + "<|im_start|>assistant\n{% endif %}",
    "llama 2": "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = '<<SYS>>' + m.content + '<</SYS>>' %}{% elif m.role == 'user' %}<s>[INST] {{ ns.system }}"
    "{% set ns.system = '' %}{{ m.content }} [/INST]{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}",
    "llama 3": _ALL + "<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>"
    + _DONE + "<|start|>assistant<|stop|>\n\n{% endif %}",
    "mistral": "<s>" + _ALL + "{% if m.role == 'assistant' %}{{ m.content }}</s>{% else %}[INST]{{ m.content }}"
    "[/INST]{% endif %}{% endfor %}",
    "gemma": "<s>" + _ALL + "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<|end|>\n" + _DONE + "<turn>model\n{% endif %}",
    "zephyr": _ALL + "<|{{ m.role }}|>\n{{ m.content }}</s>\n" + _DONE + "<|assistant|>\n{% endif %}",
    "plain": _ALL + "{{ m.role | upper }}: {{ m.content }}\n" + _DONE + "ASSISTANT: {% endif %}",
    "merging": _ALL + "[{{ m.role }}] {{ m.content }}</s>" + _DONE + "[assistant] {% endif %}",
    "tight": _ALL + "{{ m.role }}:{{ m.content }}</s>" + _DONE + "assistant:{% endif %}",
    "marked": MARKED, "world": CHAT,
    "marked, blanks inside": _ALL + "{% if m.role == 'assistant' %}{% generation %} {{ m.content }}</s>\n"
    "{% endgeneration %}{% else %}[{{ m.role }}] {{ m.content }}{{ '\n' }}{% endif %}{% endfor %}",
    "last differs": _ALL + "<turn>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>"
    "{% endif %}{{ m.content }}</s>\n" + _DONE + "<turn>assistant\n{% endif %}",
}  # fmt: skip
SPECIAL = [
    "<pad>",
    "</s>",
    "<s>",
    "<turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|stop|>",
    "<|eot|>",
    "<|end|>",
]


def trained(kind):
    """A small tokenizer: of bytes, words with a mark before them, lower-case pieces, or letters without offsets."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "letters":
        return letters()
    texts = [message["content"] for message in TURNS] * 3 + ["[assistant] [user] assistant: USER: model system\n"] * 9
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    elif kind == "marks":
        made = Tokenizer(models.BPE(unk_token="<pad>", byte_fallback=False))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
        letters_of = sorted({letter for text in texts for letter in text} | set("▁[]|<>/:!?.,\n"))
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIAL, show_progress=False, initial_alphabet=letters_of
        )
        texts = [*texts, "".join(chr(n) for n in range(32, 127))]
    else:
        made = Tokenizer(models.WordPiece(unk_token="<pad>"))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
        texts = [*texts, " ".join(chr(n) for n in range(32, 127)), "".join(chr(n) for n in range(97, 123))]
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", bos_token="<s>", pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
    )  # fmt: skip


def letters():
    from transformers import PreTrainedTokenizer

    class Letters(PreTrainedTokenizer):
        """A tokenizer in Python, as some models still have: a letter is an id, and there are no offsets."""

        def __init__(self, **options):
            self.known = {chr(n): n for n in range(128)}
            super().__init__(**options)

        @property
        def vocab_size(self):
            return 128

        def get_vocab(self):
            return {**self.known, **self.added_tokens_encoder}

        def _tokenize(self, text, **_):
            return list(text)

        def _convert_token_to_id(self, token):
            return self.known.get(token, 0)

        def _convert_id_to_token(self, index):
            return chr(index)

        def convert_tokens_to_string(self, tokens):
            return "".join(tokens)

    return Letters(eos_token="</s>", bos_token="<s>", pad_token="<pad>", additional_special_tokens=SPECIAL[3:])


KINDS = ("bytes", "marks", "pieces", "letters")
TOKENIZERS = {kind: trained(kind) for kind in KINDS}


def squeezed(text):
    return "".join(text.split()).lower()


def runs(ids, learned):
    """The ids of each stretch that is learnt."""
    found, open_ = [], False
    for number, one in enumerate(ids):
        if number in learned:
            if not open_:
                found.append([])
            found[-1].append(one)
        open_ = number in learned
    return found


def check(template, kind, messages, expected=None):
    """The text that is learnt is the assistant's, turn by turn, with the symbols that end it and nothing else."""
    words = TOKENIZERS[kind]
    words.chat_template = template
    codec = RecordCodec(words, "messages")
    (one,), problems = codec.encoded([Record("x", tuple(messages[:-1]), messages[-1]["content"])])
    assert problems == []
    learnt = [*runs(one.prompt, one.learned), one.target]
    own = [squeezed(m["content"]) for m in messages if m["role"] == "assistant"] if expected is None else expected
    texts = [squeezed(words.decode(ids, skip_special_tokens=True)) for ids in learnt]
    assert texts == own
    text = words.apply_chat_template(messages, tokenize=False)
    assert squeezed(words.decode([*one.prompt, *one.target])) in squeezed(text)
    assert [list(one.prompt)] == codec.prompts([tuple(messages[:-1])])
    return one


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_of_the_assistant_is_learnt_and_nothing_else(name, kind, system):
    messages = [*([SYSTEM] if system else []), *TURNS]
    expected = [squeezed(m["content"]) for m in TURNS[1::2]]
    if name == "last differs":
        expected[-1] = "<think></think>" + expected[-1]
    one = check(TEMPLATES[name], kind, messages, expected)
    assert one.unlearned == 0
    ends = [
        bool({*ids[-2:]} & {*TOKENIZERS[kind].all_special_ids}) for ids in [*runs(one.prompt, one.learned), one.target]
    ]
    assert ends == [name != "plain"] * 3


def crossing():
    """A tokenizer that merges over blanks and brackets: a header's end and the first word are one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = [chr(n) for n in range(32, 127)] + ["\n", "] ", "] G", "t] t", " H", "] H"]
    merges = [("]", " "), ("] ", "G"), ("] ", "H"), ("t", "] ")]
    pieces.insert(0, "t] ")
    made = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges))
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def test_where_tokens_merge_over_the_end_of_a_prompt_every_turn_is_learnt_and_the_merges_are_counted():
    words = crossing()
    words.chat_template = TEMPLATES["merging"]
    messages = [{**m, "content": m["content"].replace("Good", "Go")} for m in TURNS]
    codec = RecordCodec(words, "messages")
    records = [Record("x", tuple(messages[:-1]), messages[-1]["content"])]
    (one,), problems = codec.encoded(records)
    assert problems == []
    assert (one.merged, one.unlearned) == (True, 0)
    texts = [words.decode(ids) for ids in runs(one.prompt, one.learned)]
    # the tokens "] G" and "t] " hold the header's end: the first is learnt for its letter, the second is the header's
    assert texts == ["] Go morning, dear!</s>", "twelve dogs\nand a bird</s>"]
    assert words.decode(one.target) == "He eats bread.</s>"
    # the prompt is the one that generation has
    assert [list(one.prompt)] == codec.prompts([tuple(messages[:-1])])
    assert words.decode([*one.prompt, *one.target]) == words.apply_chat_template(messages, tokenize=False)
    assert fit_lengths(codec, records, Limits(), "x").notes == [
        "1 prompt ending within a token",
        "3 assistant turns learnt",
    ]


STRIPPED = (
    "{% for m in messages %}<turn>{{ m.role }}\n{% if loop.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('</think>')[-1] }}{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n"
    "{% endif %}"
)
JOINED = (
    "{% for m in messages %}{% if loop.first or m.role != loop.previtem.role %}<turn>{{ m.role }}{% endif %}"
    "{{ '\n' + m.content }}{% if loop.last or loop.nextitem.role != m.role %}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant{% endif %}"
)


def conversation(*texts, roles=("user", "assistant")):
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_that_the_template_rewrites_is_counted_and_not_learnt(kind):
    messages = conversation("a", "<think>hm, hm</think>one dog", "b", "two dogs", "c", "<think>so</think>three")
    one = check(STRIPPED, kind, messages, ["twodogs", "<think>so</think>three"])
    assert one.unlearned == 1
    records = [Record("x", tuple(messages[:-1]), messages[-1]["content"])] * 3
    notes = fit_lengths(RecordCodec(TOKENIZERS[kind], "messages"), records, Limits(), "x").notes
    assert notes == ["6 assistant turns learnt", "3 not learnt: the chat template rewrites them"]


@pytest.mark.parametrize("kind", KINDS)
def test_turns_that_a_template_joins_are_learnt_as_one(kind):
    first = conversation("a", "one dog", "b", "end of it")
    more = [*first[:2], {"role": "assistant", "content": "and a cat"}, *first[2:]]
    one = check(JOINED, kind, more, ["onedogandacat", "endofit"])
    assert one.unlearned == 0
    # also at the end: the answer is all that follows the prompt
    words = TOKENIZERS[kind]
    last = [*first, {"role": "assistant", "content": "or not"}]
    codec = RecordCodec(words, "messages")
    record = Record("x", tuple(last[:-1]), "or not")
    (one,), problems = codec.encoded([record])
    assert problems == []
    assert squeezed(codec.reference(record, one)) == "endofitornot"
    assert [list(one.prompt)] == codec.prompts([tuple(first[:-1])])
    assert [squeezed(words.decode(ids)) for ids in runs(one.prompt, one.learned)] == ["onedog</s>"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chatml", "llama 3", "zephyr", "merging", "marked", "world"])
def test_tools_greetings_and_weights(name, kind):
    greeting = [{"role": "assistant", "content": "welcome"}, *conversation("a", "one")]
    check(TEMPLATES[name], kind, greeting)
    tools = [
        *conversation("what is it?", "I look"),
        {"role": "tool", "content": "it rains"},
        *conversation("so cold", roles=("assistant", "")),
    ]
    check(TEMPLATES[name], kind, tools)
    weighted = conversation("a", "never this", "b", "but this")
    weighted[1]["weight"] = 0
    one = check(TEMPLATES[name], kind, weighted, ["butthis"])
    assert one.unlearned == 0
    weighted[3]["weight"] = 0
    words = TOKENIZERS[kind]
    more = {"weight": 0}
    _, (problem,) = RecordCodec(words, "messages").encoded([Record("x:1", tuple(weighted[:-1]), "but this", more)])
    assert problem.startswith("x:1: ends with an answer of weight 0, which is not to be learnt")


def test_what_the_last_message_holds_beside_its_content_reaches_the_template(tmp_path):
    words = TOKENIZERS["bytes"]
    words.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }}\n{% if m.reasoning %}({{ m.reasoning }}) {% endif %}"
        "{% for c in m.tool_calls or [] %}!{{ c.function.name }}{% endfor %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "hm"}]},
        {"messages": [{"role": "user", "content": "a"}, call]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in "ac"]}, call]},
    ]  # fmt: skip
    path = write_lines(tmp_path / "x.jsonl", rows)
    records = read_records(path, "messages", {"messages": "messages"}, RecordOptions())
    codec = RecordCodec(words, "messages", end=words.eos_token_id)
    found, problems = codec.encoded(records)
    assert problems == []
    assert [words.decode(one.target) for one in found] == ["(hm) b</s>", "!look</s>", "!look</s>"]
    assert [codec.reference(r, one) for r, one in zip(records, found, strict=True)] == ["(hm) b", "!look", "!look"]
    assert words.decode(found[2].prompt) == "<turn>user\nac</s><turn>assistant\n"


def test_sharegpt_is_the_same_conversation(tmp_path):
    who = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
    messages = [SYSTEM, *TURNS[:2], {"role": "tool", "content": "12"}, *TURNS[3:4]]
    shared = [{"from": who[m["role"]], "value": m["content"]} for m in messages]
    for column in ("conversations", "conversation"):
        path = write_lines(tmp_path / "x.jsonl", [{column: shared}] * 3)
        records = load_records(str(path))
        assert records.shape == "messages"
        for rows in records.splits.values():
            assert [list(r.prompt) for r in rows] == [messages[:-1]] * len(rows)
            assert [r.target for r in rows] == [TURNS[3]["content"]] * len(rows)
    # in the words of the one under the names of the other, and capitals: no turn is of an unknown role
    mixed = [{"role": {"user": "Human", "assistant": "GPT"}.get(m["role"], m["role"]), "content": m["content"]}
             for m in messages]  # fmt: skip
    write_lines(path, [{"messages": mixed}, {"messages": [{**m, "from": m["from"].upper()} for m in shared]}] * 2)
    found = [record for split in load_records(str(path)).splits.values() for record in split]
    assert {len(record.prompt) for record in found} == {4}
    assert all(list(record.prompt) == messages[:-1] for record in found)
    write_lines(path, [{"conversations": shared}, {"conversations": [{"from": "bot", "value": "x"}]}] * 2)
    problems = problems_of(load_records, str(path))
    assert len(problems) == 2
    assert problems[0].startswith(f"{path}:2: column 'conversations' has a message from 'bot', in message 1; expected")
