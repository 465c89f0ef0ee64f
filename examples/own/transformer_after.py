"""The translator of ``transformer_before.py``, compared by freerun: did leaving teacher forcing pay?

Run: python examples/own/transformer_after.py --epochs 1 --emb-size 8 [--epochs 20 --emb-size 64]
"""

import argparse
import math
import random

import torch
from torch import nn
from torch.utils.data import DataLoader
from translation_before import Lang, english, french

import freerun as fr

PAD_IDX, BOS_IDX, EOS_IDX = 0, 1, 2
MAX_LENGTH = 12


class PositionalEncoding(nn.Module):
    def __init__(self, emb_size, maxlen=100):
        super().__init__()
        den = torch.exp(-torch.arange(0, emb_size, 2) * math.log(10000) / emb_size)
        pos = torch.arange(0, maxlen).reshape(maxlen, 1)
        table = torch.zeros((maxlen, emb_size))
        table[:, 0::2] = torch.sin(pos * den)
        table[:, 1::2] = torch.cos(pos * den)
        self.register_buffer("pos_embedding", table)

    def forward(self, token_embedding):
        return token_embedding + self.pos_embedding[: token_embedding.size(1)]


class Seq2SeqTransformer(nn.Module):
    def __init__(self, src_vocab_size, tgt_vocab_size, emb_size=64, nhead=4, layers=2):
        super().__init__()
        self.transformer = nn.Transformer(emb_size, nhead, layers, layers, 2 * emb_size, 0.1, batch_first=True)
        self.generator = nn.Linear(emb_size, tgt_vocab_size)
        self.src_tok_emb = nn.Embedding(src_vocab_size, emb_size)
        self.tgt_tok_emb = nn.Embedding(tgt_vocab_size, emb_size)
        self.positional_encoding = PositionalEncoding(emb_size)

    def encode(self, batch):
        src = batch.context
        padding = src == PAD_IDX
        src_emb = self.positional_encoding(self.src_tok_emb(src))
        return self.transformer.encoder(src_emb, src_key_padding_mask=padding), padding


def make_model(*sizes):
    net = Seq2SeqTransformer(*sizes)
    return fr.models.TransformerDecoderModel(
        net.transformer.decoder, net.tgt_tok_emb, net.generator, start=BOS_IDX, encode=net.encode,
        positions=net.positional_encoding.pos_embedding,
    )  # fmt: skip


def sentences(numbers):
    source, target = Lang("eng"), Lang("fra")
    for n in range(1000):
        source.addSentence(english(n))
        target.addSentence(french(n))
    pairs = []
    for n in numbers:
        ids = []
        for lang, text in ((source, english(n)), (target, french(n))):
            row = [lang.word2index[word] + 1 for word in text.split(" ")] + [EOS_IDX]
            ids.append(torch.tensor(row + [PAD_IDX] * (MAX_LENGTH - len(row))))
        pairs.append(tuple(ids))
    return source, target, pairs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--emb-size", type=int, default=64)
    args = parser.parse_args()
    random.seed(0)
    numbers = random.sample(range(1000), 1000)
    source, target, pairs = sentences(numbers)
    sizes = (source.n_words + 1, target.n_words + 1, args.emb_size)
    parts = {"train": pairs[:700], "dev": pairs[700:800], "test": pairs[800:]}
    data = {name: DataLoader(part, batch_size=32) for name, part in parts.items()}
    data = {name: [fr.Batch(y, mask=y != PAD_IDX, context=x) for x, y in loader] for name, loader in data.items()}
    arms = {"gold": fr.teacher_forcing(), "half": fr.scheduled_sampling(0.5), "noise": fr.matched_noise("half")}
    result = fr.compare(lambda: make_model(*sizes), data, arms, updates=22 * args.epochs)
    print(result, result.save("transformer.html"))


if __name__ == "__main__":
    main()
