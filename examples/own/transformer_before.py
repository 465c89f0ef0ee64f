"""A translator in the structure of PyTorch's tutorial on ``nn.Transformer``, trained by teacher forcing.

Run: python examples/own/transformer_before.py [--epochs 20]
"""

import argparse
import math
import random

import torch
from torch import nn
from torch.utils.data import DataLoader
from translation_before import Lang, english, french

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

    def forward(self, src, trg):
        mask = nn.Transformer.generate_square_subsequent_mask(trg.size(1))
        memory, padding = self.encode(src)
        tgt_emb = self.positional_encoding(self.tgt_tok_emb(trg))
        outs = self.transformer.decoder(tgt_emb, memory, tgt_mask=mask, memory_key_padding_mask=padding)
        return self.generator(outs)

    def encode(self, src):
        padding = src == PAD_IDX
        src_emb = self.positional_encoding(self.src_tok_emb(src))
        return self.transformer.encoder(src_emb, src_key_padding_mask=padding), padding


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
    model = Seq2SeqTransformer(*sizes)
    loss_fn = nn.CrossEntropyLoss(ignore_index=PAD_IDX)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(args.epochs):
        for src, tgt in data["train"]:
            tgt_input = torch.cat([torch.full((len(tgt), 1), BOS_IDX), tgt[:, :-1]], 1)
            logits = model(src, tgt_input)
            optimizer.zero_grad()
            loss = loss_fn(logits.reshape(-1, logits.shape[-1]), tgt.reshape(-1))
            loss.backward()
            optimizer.step()
        print(epoch, loss.item())


if __name__ == "__main__":
    main()
