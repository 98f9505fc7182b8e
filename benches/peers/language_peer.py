"""A small language model in PyTorch, trained as bpm trains it: a program of `language.py`.

Layer by layer: the input maps of all steps are one product, then the steps follow. `eager` runs one kernel
per operation, with products and sums fused by hand; `compile` compiles the step; `nn` takes the LSTM of
the library, for the network without plasticity.
"""

import argparse
import json
import logging
import os
import sys
import time
from types import SimpleNamespace

from safetensors.numpy import load_file

# Resolves symbols of GPU libraries only when called, so that empty ones will do.
sys.setdlopenflags(os.RTLD_LAZY)
import torch  # noqa: E402

# The compiler for processors does not need Triton.
logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)

ROWS, WINDOW = 20, 20
DECAY, CLIP = 1e-5, 5.0


def lstm_step(p, x, states):
    """Two biases and the candidate beside the gates, as in nn.LSTM."""
    h, c = states
    f, k, o, e = torch.addmm(x, h, p.slow_t).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(k) * torch.tanh(e)
    return torch.sigmoid(o) * torch.tanh(c), c


def candidate(p, x, h, c, read):
    """Gates, candidate, new output: what the plastic cells share. `read` is the plastic part."""
    n = h.shape[1]
    slow = torch.addmm(x, h, p.slow_t)
    f, k, o = torch.sigmoid(slow[:, : 3 * n]).chunk(3, 1)
    g = torch.tanh(slow[:, 3 * n :] + read)
    c = f * c + k * g
    return g, o * torch.tanh(c), c


def eager_read(p, plastic, h):
    """(alpha * P) @ h of all rows by the library."""
    return torch.bmm(p.alpha * plastic, h.unsqueeze(2)).squeeze(2)


def fused_read(p, plastic, h):
    """The same in a form that the compiler fuses."""
    return (p.alpha * plastic * h.unsqueeze(1)).sum(2)


def outer(post, pre):
    """post pre' of all rows."""
    return post.unsqueeze(2) * pre.unsqueeze(1)


def plastic_step(read, p, x, states):
    """Eq. 2: a rate per connection."""
    h, c, plastic = states
    g, new, c = candidate(p, x, h, c, read(p, plastic, h))
    return new, c, torch.addcmul(plastic, p.eta, outer(g, h)).clamp(-1, 1)


def modulator(p, h):
    """tanh(wm . h + bm), as a matrix of one number per row."""
    return torch.tanh(torch.matmul(h, p.wm) + p.bm)[:, None]


def simple_step(read, p, x, states):
    """Eq. 3: the modulator of the old output, with a weight per connection."""
    h, c, plastic = states
    g, new, c = candidate(p, x, h, c, read(p, plastic, h))
    return new, c, torch.addcmul(plastic, p.F, outer(modulator(p, h) * g, h)).clamp(-1, 1)


def retroactive_step(read, p, x, states):
    """Eqs. 4 and 5: the modulator admits the old trace."""
    h, c, plastic, trace = states
    g, new, c = candidate(p, x, h, c, read(p, plastic, h))
    plastic = (plastic + p.F * modulator(p, h)[:, :, None] * trace).clamp(-1, 1)
    return new, c, plastic, (1 - p.eta) * trace + p.eta * outer(g, h)


STEPS = {"plastic": plastic_step, "simple": simple_step, "retroactive": retroactive_step}


def fast(condition, p):
    """The parameters of a layer as a step takes them."""
    if condition == "lstm":
        return SimpleNamespace(inputs=p["X"], bias=p["x"] + p["r"], slow_t=p["R"].t())
    found = SimpleNamespace(
        inputs=torch.cat([p["Xg"], p["Xc"]]),
        bias=torch.cat([p["xg"] + p["hg"], p["xc"]]),
        slow_t=torch.cat([p["Hg"], p["W"]]).t(),
        alpha=p["alpha"],
    )
    if condition == "plastic":
        found.eta = p["eta"]
    else:
        found.wm, found.bm, found.F = p["wm"], p["bm"], p["F"]
    if condition == "retroactive":
        found.eta = torch.sigmoid(p["eta"])
    return found


class Network:
    """Two layers between an embedding and a softmax."""

    def __init__(self, condition, variant, params):
        """Takes the numbers over; `eta` of the retroactive rule is kept by its logit."""
        self.condition, self.variant = condition, variant
        self.own = {name: torch.tensor(x) for name, x in params.items()}
        for name in self.own:
            if condition == "retroactive" and name.endswith("eta"):
                self.own[name] = torch.logit(self.own[name])
        self.n = self.own["two.x" if condition == "lstm" else "two.xc"].shape[0]
        if condition == "lstm":
            self.n //= 4
        if variant == "nn":
            self.library(params)
        for x in self.own.values():
            x.requires_grad_()
        self.states = None
        if condition == "lstm":
            self.step = lstm_step
        else:
            read = fused_read if variant == "compile" else eager_read
            step = STEPS[condition]
            self.step = lambda p, x, states: step(read, p, x, states)
        if variant == "compile":
            self.step = torch.compile(self.step, fullgraph=True, dynamic=False)

    def library(self, params):
        """nn.LSTM with these weights; its gates are in the order i, f, candidate, o."""
        lstm = torch.nn.LSTM(params["embedding"].shape[1], self.n, 2)
        order = [1, 0, 3, 2]

        def sorted_gates(name):
            gates = self.own.pop(name).chunk(4)
            return torch.cat([gates[k] for k in order])

        with torch.no_grad():
            for k, layer in enumerate(("one", "two")):
                for ours, theirs in {"X": "weight_ih", "R": "weight_hh", "x": "bias_ih", "r": "bias_hh"}.items():
                    getattr(lstm, f"{theirs}_l{k}").copy_(sorted_gates(f"{layer}.{ours}"))
        self.lstm = lstm
        self.own |= {f"lstm.{name}": x for name, x in lstm.named_parameters()}

    def zeros(self):
        """The states of both layers before the first word."""
        vector, matrix = (ROWS, self.n), (ROWS, self.n, self.n)
        shapes = {"lstm": [vector] * 2, "plastic": [vector, vector, matrix], "simple": [vector, vector, matrix]}
        shapes = shapes.get(self.condition, [vector, vector, matrix, matrix])
        return [tuple(torch.zeros(s) for s in shapes) for _ in range(2)]

    def features(self, xs):
        """The outputs of the upper layer in all steps of a window; states are carried without gradient."""
        if self.variant == "nn":
            ys, states = self.lstm(xs, self.states)
            self.states = tuple(s.detach() for s in states)
            return ys
        if self.states is None:
            self.states = self.zeros()
        for k, layer in enumerate(("one.", "two.")):
            own = {n.removeprefix(layer): x for n, x in self.own.items() if n.startswith(layer)}
            p = fast(self.condition, own)
            states, ys = self.states[k], []
            for x in torch.nn.functional.linear(xs, p.inputs, p.bias).unbind(0):
                states = self.step(p, x, states)
                ys.append(states[0])
            self.states[k] = tuple(s.detach() for s in states)
            xs = torch.stack(ys)
        return xs

    def loss(self, words, targets):
        """The mean cross-entropy of a window."""
        ys = self.features(torch.nn.functional.embedding(words, self.own["embedding"]))
        logits = torch.nn.functional.linear(ys, self.own["decoder"], self.own["decoder_bias"])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rows_of(args):
    """The text as rows of word numbers, [words, rows]."""
    with open(args.vocabulary, encoding="utf-8") as file:
        numbers = {word: k for k, word in enumerate(file.read().split())}
    with open(args.text, encoding="utf-8") as file:
        words = [numbers[w] for line in file for w in [*line.split(), "<eos>"]]
    length = len(words) // ROWS
    return torch.tensor(words[: ROWS * length]).view(ROWS, length).t().contiguous()


def main():
    """Trains, and prints losses and times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("condition")
    parser.add_argument("--variant", choices=("eager", "compile", "nn"), default="eager")
    parser.add_argument("--params", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = rows_of(args)
    network = Network(args.condition, args.variant, load_file(args.params))
    optimiser = torch.optim.SGD(network.own.values(), lr=args.rate, weight_decay=DECAY)
    losses, ms = [], []
    for k in range(args.updates):
        started = time.perf_counter()
        words = text[k * WINDOW : (k + 1) * WINDOW + 1]
        optimiser.zero_grad()
        loss = network.loss(words[:-1], words[1:])
        # The rate is made for losses that are summed over the steps of a window.
        (loss * WINDOW).backward()
        torch.nn.utils.clip_grad_norm_(network.own.values(), CLIP)
        optimiser.step()
        losses.append(loss.item())
        ms.append(1e3 * (time.perf_counter() - started))
    print(json.dumps({"losses": losses, "ms": ms}))


if __name__ == "__main__":
    main()
