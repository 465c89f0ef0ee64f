"""A translator in the structure of PyTorch's translation tutorial: Bahdanau attention, a decoder that loops by itself.

Run: python examples/own/translation_before.py [--epochs 20]
"""

import argparse
import random

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import optim
from torch.utils.data import DataLoader, TensorDataset

SOS_token = 0
EOS_token = 1
MAX_LENGTH = 10
teacher_forcing_ratio = 0.5

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
ONES += ["seventeen", "eighteen", "nineteen"]
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNS = [
    "zéro",
    "un",
    "deux",
    "trois",
    "quatre",
    "cinq",
    "six",
    "sept",
    "huit",
    "neuf",
    "dix",
    "onze",
    "douze",
    "treize",
    "quatorze",
    "quinze",
    "seize",
]
UNS += ["dix sept", "dix huit", "dix neuf"]
DIZAINES = [
    "_",
    "_",
    "vingt",
    "trente",
    "quarante",
    "cinquante",
    "soixante",
    "soixante",
    "quatre-vingt",
    "quatre-vingt",
]


def english(n):
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + ("" if n % 10 == 0 else " " + ONES[n % 10])
    return ONES[n // 100] + " hundred" + ("" if n % 100 == 0 else " " + english(n % 100))


def french(n):
    if n < 20:
        return UNS[n]
    if n < 100:
        ten, rest = n // 10, n % 10
        if ten in (7, 9):
            rest += 10
        joined = " et " if rest in (1, 11) and ten < 8 else " "
        return DIZAINES[ten] + ("" if rest == 0 else joined + UNS[rest])
    hundred = "cent" if n < 200 else UNS[n // 100] + " cent"
    return hundred + ("" if n % 100 == 0 else " " + french(n % 100))


class Lang:
    def __init__(self, name):
        self.name = name
        self.word2index = {}
        self.index2word = {0: "SOS", 1: "EOS"}
        self.n_words = 2

    def addSentence(self, sentence):
        for word in sentence.split(" "):
            if word not in self.word2index:
                self.word2index[word] = self.n_words
                self.index2word[self.n_words] = word
                self.n_words += 1


class EncoderRNN(nn.Module):
    def __init__(self, input_size, hidden_size, dropout_p=0.1):
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(input_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout_p)

    def forward(self, input):
        embedded = self.dropout(self.embedding(input))
        output, hidden = self.gru(embedded)
        return output, hidden


class BahdanauAttention(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.Wa = nn.Linear(hidden_size, hidden_size)
        self.Ua = nn.Linear(hidden_size, hidden_size)
        self.Va = nn.Linear(hidden_size, 1)

    def forward(self, query, keys):
        scores = self.Va(torch.tanh(self.Wa(query) + self.Ua(keys)))
        scores = scores.squeeze(2).unsqueeze(1)
        weights = F.softmax(scores, dim=-1)
        context = torch.bmm(weights, keys)
        return context, weights


class AttnDecoderRNN(nn.Module):
    def __init__(self, hidden_size, output_size, dropout_p=0.1):
        super().__init__()
        self.embedding = nn.Embedding(output_size, hidden_size)
        self.attention = BahdanauAttention(hidden_size)
        self.gru = nn.GRU(2 * hidden_size, hidden_size, batch_first=True)
        self.out = nn.Linear(hidden_size, output_size)
        self.dropout = nn.Dropout(dropout_p)

    def forward(self, encoder_outputs, encoder_hidden, target_tensor=None):
        batch_size = encoder_outputs.size(0)
        decoder_input = torch.empty(batch_size, 1, dtype=torch.long).fill_(SOS_token)
        decoder_hidden = encoder_hidden
        decoder_outputs = []
        for i in range(MAX_LENGTH):
            decoder_output, decoder_hidden, _ = self.forward_step(decoder_input, decoder_hidden, encoder_outputs)
            decoder_outputs.append(decoder_output)
            if target_tensor is not None and random.random() < teacher_forcing_ratio:
                decoder_input = target_tensor[:, i].unsqueeze(1)
            else:
                _, topi = decoder_output.topk(1)
                decoder_input = topi.squeeze(-1).detach()
        return torch.cat(decoder_outputs, dim=1)

    def forward_step(self, input, hidden, encoder_outputs):
        embedded = self.dropout(self.embedding(input))
        query = hidden.permute(1, 0, 2)
        context, attn_weights = self.attention(query, encoder_outputs)
        input_gru = torch.cat((embedded, context), dim=2)
        output, hidden = self.gru(input_gru, hidden)
        output = self.out(output)
        return output, hidden, attn_weights


def prepareData(numbers):
    source, target = Lang("eng"), Lang("fra")
    for n in range(1000):
        source.addSentence(english(n))
        target.addSentence(french(n))
    input_ids = torch.zeros(len(numbers), MAX_LENGTH, dtype=torch.long)
    target_ids = torch.zeros(len(numbers), MAX_LENGTH, dtype=torch.long)
    for row, n in enumerate(numbers):
        inp = [source.word2index[word] for word in english(n).split(" ")] + [EOS_token]
        tgt = [target.word2index[word] for word in french(n).split(" ")] + [EOS_token]
        input_ids[row, : len(inp)] = torch.tensor(inp)
        target_ids[row, : len(tgt)] = torch.tensor(tgt)
    return source, target, TensorDataset(input_ids, target_ids)


def train_epoch(dataloader, encoder, decoder, optimizer, criterion):
    total_loss = 0
    for input_tensor, target_tensor in dataloader:
        optimizer.zero_grad()
        encoder_outputs, encoder_hidden = encoder(input_tensor)
        decoder_outputs = decoder(encoder_outputs, encoder_hidden, target_tensor)
        loss = criterion(decoder_outputs.view(-1, decoder_outputs.size(-1)), target_tensor.view(-1))
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
    return total_loss / len(dataloader)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=64)
    args = parser.parse_args()
    random.seed(0)
    numbers = random.sample(range(1000), 1000)
    source, target, _ = prepareData(numbers)
    parts = {"train": numbers[:700], "dev": numbers[700:800], "test": numbers[800:]}
    data = {name: DataLoader(prepareData(part)[2], batch_size=32) for name, part in parts.items()}
    encoder = EncoderRNN(source.n_words, args.hidden)
    decoder = AttnDecoderRNN(args.hidden, target.n_words)
    optimizer = optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.003)
    criterion = nn.CrossEntropyLoss(ignore_index=SOS_token)
    for epoch in range(args.epochs):
        print(epoch, train_epoch(data["train"], encoder, decoder, optimizer, criterion))


if __name__ == "__main__":
    main()
