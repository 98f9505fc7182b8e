"""The compared models in PyTorch eager, written to be fast: in float32, with the whole batch at once.

What does not depend on the recurrence is hoisted out of the loop over time: maps of inputs before it,
readouts after it. Products that eager mode can fuse are fused (addmm, baddbmm, addcmul). Parameter
names and shapes are those of the spec. As a program, this file times one model and prints JSON in the
form of `bpm bench --json`.
"""

import argparse
import json
import os
import sys
import time

import numpy as np

# Resolves symbols of GPU libraries only when called, so that empty ones will do (README).
sys.setdlopenflags(os.RTLD_LAZY)
import torch  # noqa: E402


def outer(post, pre):
    """The coincidences post[j] * pre[i] of every row, as arguments of a batched product."""
    return post.unsqueeze(2), pre.unsqueeze(1)


def recurrent(p, x, y, h):
    """y' = tanh(x + (W + alpha * H) @ y) and m = tanh(wm . y' + bm)."""
    plastic = torch.bmm(p["alpha"] * h, y.unsqueeze(2)).squeeze(2)
    y = torch.tanh(torch.addmm(x, y, p["W"].t()) + plastic)
    return y, torch.tanh(torch.addmv(p["bm"], y, p["wm"])).unsqueeze(1)


def readouts(p, ys):
    """Action logits and state value of all steps."""
    ys = torch.stack(ys)
    policy = torch.nn.functional.linear(ys, p["Wo"], p["bo"])
    return {"policy": policy, "value": ys @ p["wv"] + p["bv"]}


def simple(p, u, s):
    """specs/backpropamine/simple.bpm"""
    y, h, ys = s["y"], s["H"], []
    for x in torch.nn.functional.linear(u, p["Wx"], p["bx"]).unbind(0):
        before = y
        y, m = recurrent(p, x, y, h)
        h = torch.baddbmm(h, *outer(m * y, before)).clamp(-1, 1)
        ys.append(y)
    return readouts(p, ys)


def retroactive(p, u, s):
    """specs/backpropamine/retroactive.bpm: the old trace reaches H, then takes the coincidence."""
    y, h, e, ys = s["y"], s["H"], s["E"], []
    for x in torch.nn.functional.linear(u, p["Wx"], p["bx"]).unbind(0):
        before = y
        y, m = recurrent(p, x, y, h)
        h = torch.addcmul(h, m.unsqueeze(2), e).clamp(-1, 1)
        e = torch.baddbmm((1 - p["eta"]) * e, *outer(p["eta"] * y, before))
        ys.append(y)
    return readouts(p, ys)


def modulated(p, u, s):
    """specs/plastic_lstm/modulated.bpm: all maps of u are one product, all slow maps of h another."""
    h, c, plastic, hs = s["h"], s["c"], s["P"], []
    weights = torch.cat([p["Hg"], p["W"]]).t()
    bias = torch.cat([p["xg"] + p["hg"], p["xc"]])
    for x in torch.nn.functional.linear(u, torch.cat([p["Xg"], p["Xc"]]), bias).unbind(0):
        before, n = h, h.shape[1]
        gates, candidate = torch.addmm(x, h, weights).split([3 * n, n], 1)
        f, k, o = torch.sigmoid(gates).chunk(3, 1)
        g = torch.tanh(candidate + p["alpha"] * torch.bmm(plastic, h.unsqueeze(2)).squeeze(2))
        c = f * c + k * g
        h = o * torch.tanh(c)
        m = torch.tanh(torch.addmv(p["bm"], h, p["wm"])).unsqueeze(1)
        plastic = torch.baddbmm(plastic, *outer((m * p["F"] + p["b"]) * g, before)).clamp(-2, 2)
        hs.append(h)
    return {"logits": torch.nn.functional.linear(torch.stack(hs), p["Wo"], p["bo"])}


RECURRENT = {
    "Wx": "NI", "bx": "N", "W": "NN", "alpha": "NN", "wm": "N", "bm": "",
    "Wo": "AN", "bo": "A", "wv": "N", "bv": "",
}  # fmt: skip
LSTM = {
    "Xg": "GI", "xg": "G", "Hg": "GN", "hg": "G", "Xc": "NI", "xc": "N", "W": "NN", "alpha": "N",
    "wm": "N", "bm": "", "F": "N", "b": "N", "Wo": "ON", "bo": "O",
}  # fmt: skip

# Model: function, axes of parameters, axes of states.
MODELS = {
    "simple": (simple, RECURRENT, {"y": "N", "H": "NN"}),
    "retroactive": (retroactive, RECURRENT | {"eta": ""}, {"y": "N", "H": "NN", "E": "NN"}),
    "modulated": (modulated, LSTM, {"h": "N", "c": "N", "P": "NN"}),
}


def draw(model, axes, batch, steps, seed, states=0.0):
    """Random parameters, inputs [T, B, I] and initial states (uniform in ±states), as arrays."""
    rng = np.random.default_rng(seed)
    size = axes | {"G": 3 * axes["N"]}
    _, params, state_axes = MODELS[model]

    def uniform(shape, scale):
        return rng.uniform(-scale, scale, shape).astype(np.float32)

    def param(name, letters):
        if name == "eta":
            return np.asarray(0.1, np.float32)
        scale = 0.1 if name == "alpha" else axes["N"] ** -0.5
        return uniform([size[a] for a in letters], scale)

    return (
        {name: param(name, letters) for name, letters in params.items()},
        uniform([steps, batch, axes["I"]], 1.0),
        {name: uniform([batch] + [size[a] for a in ax], states) for name, ax in state_axes.items()},
    )


def evaluate(model, params, inputs, states):
    """Outputs, and the gradients of the loss sum(0.1 * outputs), as arrays."""
    p = {name: torch.tensor(x, requires_grad=True) for name, x in params.items()}
    s = {name: torch.tensor(x) for name, x in states.items()}
    outputs = MODELS[model][0](p, torch.tensor(inputs), s)
    sum(0.1 * x.sum() for x in outputs.values()).backward()
    numpy = {f"out.{name}": x.detach().numpy() for name, x in outputs.items()}
    return numpy | {f"grad.{name}": x.grad.numpy() for name, x in p.items()}


def peak_mib():
    """The peak resident memory of this process."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def bench(model, axes, batch, steps, repeat):
    """Times forward (without a tape) and forward with backward; one round warms up."""
    params, inputs, states = draw(model, axes, batch, steps, seed=0)
    before = peak_mib()
    p = {name: torch.tensor(x, requires_grad=True) for name, x in params.items()}
    s = {name: torch.tensor(x) for name, x in states.items()}
    u, run = torch.tensor(inputs), MODELS[model][0]
    forward, both = [], []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        with torch.no_grad():
            run(p, u, s)
        forward.append(1e3 * (time.perf_counter() - started))
        for x in p.values():
            x.grad = None
        started = time.perf_counter()
        sum(0.1 * x.sum() for x in run(p, u, s).values()).backward()
        both.append(1e3 * (time.perf_counter() - started))

    def times(ms):
        ms = sorted(ms[1:])
        return {"median": ms[len(ms) // 2], "min": ms[0], "max": ms[-1]}

    return {
        "spec": model, "batch": batch, "steps": steps, "threads": torch.get_num_threads(),
        "forward_ms": times(forward), "forward_backward_ms": times(both),
        "peak_mib": peak_mib() - before,
    }  # fmt: skip


def set_up(threads):
    """As the kernels of bpm do, flushes denormal numbers: they are slow."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--axis", action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    set_up(args.threads)
    axes = {name: int(size) for name, size in (a.split("=") for a in args.axis)}
    print(json.dumps(bench(args.model, axes, args.batch, args.steps, args.repeat)))


if __name__ == "__main__":
    main()
