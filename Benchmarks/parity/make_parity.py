#!/usr/bin/env python3
"""Trains a byte language model in PyTorch and records everything that another implementation needs to repeat it.

    make_parity.py OUT.safetensors --mechanism softmax|linear|momentum --text FILE
                   [--layers L --model-dim E --heads H --length N --batch B --steps S]

The file holds the initial weights (`initial.NAME`, under the names of this project's LanguageModel), the batches
(`tokens` [steps, batch, length + 1]), the loss before each update (`losses`, float64) and the weights after the last one
(`final.NAME`); the metadata says the rest. The model is written from the definitions, naively: matrices of length x length.
Needs torch 2.13, numpy and safetensors.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

MOMENTUM, STEP_SIZE, EPSILON = 0.6, 0.9, 1e-6


class Mixer(nn.Module):
    def __init__(self, dim, heads, mechanism):
        super().__init__()
        self.heads, self.mechanism = heads, mechanism
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        if self.mechanism == "softmax":
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            out = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
        else:
            q, k = F.elu(q) + 1, F.elu(k) + 1
            scores = (q @ k.transpose(-1, -2)) * visible
            weights = torch.ones(length, length, dtype=torch.float64)
            if self.mechanism == "momentum":
                distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
                weights = STEP_SIZE * (1 - MOMENTUM ** (distance + 1).clamp(min=0).double()) / (1 - MOMENTUM)
            out = (scores * weights.to(x.dtype)) @ v / (scores.sum(-1, keepdim=True) + EPSILON)
        return self.output(out.transpose(1, 2).reshape(batch, length, dim))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, mechanism):
        super().__init__()
        self.mixer, self.feedForward = Mixer(dim, heads, mechanism), FeedForward(dim)
        self.mixerNorm, self.feedForwardNorm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x):
        x = x + self.mixer(self.mixerNorm(x))
        return x + self.feedForward(self.feedForwardNorm(x))


class LanguageModel(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embedding = nn.ModuleDict(dict(token=nn.Embedding(256, o.model_dim), learned=nn.Embedding(o.length, o.model_dim)))
        self.encoder = nn.ModuleDict(
            dict(
                blocks=nn.ModuleList(Block(o.model_dim, o.heads, o.mechanism) for _ in range(o.layers)),
                norm=nn.LayerNorm(o.model_dim),
            )
        )
        self.head = nn.Linear(o.model_dim, 256)
        for table in self.embedding.values():
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens):
        x = self.embedding["token"](tokens) + self.embedding["learned"].weight
        for block in self.encoder["blocks"]:
            x = block(x)
        return self.head(self.encoder["norm"](x))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--mechanism", choices=["softmax", "linear", "momentum"], required=True)
    parser.add_argument("--text", required=True)
    for name, value in dict(layers=2, model_dim=32, heads=2, length=48, batch=4, steps=30).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    o = parser.parse_args()

    torch.manual_seed(0)
    data = torch.frombuffer(bytearray(open(o.text, "rb").read()), dtype=torch.uint8).long()
    starts = torch.randint(0, len(data) - o.length - 1, (o.steps, o.batch))
    tokens = torch.stack([torch.stack([data[s : s + o.length + 1] for s in row]) for row in starts])
    model = LanguageModel(o)
    initial = {f"initial.{k}": v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    losses = []
    for batch in tokens:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    final = {f"final.{k}": v.clone() for k, v in model.state_dict().items()}
    settings = dict(vars(o), torch=torch.__version__, momentum=MOMENTUM, step_size=STEP_SIZE)
    del settings["out"], settings["text"]
    tensors = {**initial, **final, "tokens": tokens.to(torch.int32), "losses": torch.tensor(losses, dtype=torch.float64)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, o.out, metadata={"settings": json.dumps(settings)})
    print(f"{o.mechanism}: loss {losses[0]:.6f} to {losses[-1]:.6f} in {o.steps} steps; wrote {o.out}")


if __name__ == "__main__":
    main()
