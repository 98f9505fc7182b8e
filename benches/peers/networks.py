"""The compared networks, once for all frameworks.

A network is three functions of a table of operations `ops` (one per framework, written to be fast
there), parameters `p` by the names of the spec, and tensors with the batch first: `prepare` maps the
whole input sequence before the loop over time, `step` is one step, and `read_out` maps the activities
of all steps after it. States are a tuple; the first one is the activity that is read out.
"""

from collections.abc import Callable
from dataclasses import dataclass


def recurrent_inputs(ops, p, u):
    """The input map of all steps, and what a step needs."""
    return ops.linear(u, p["Wx"], p["bx"]), p


def recurrent_activity(ops, p, x, y, h):
    """y' = tanh(x + (W + alpha * H) @ y) and m = tanh(wm . y' + bm)."""
    y = ops.tanh(ops.synapses(x, p["W"], p["alpha"], h, y))
    return y, ops.tanh(ops.dot(y, p["wm"], p["bm"]))[:, None]


def recurrent_outputs(ops, p, ys):
    """Action logits and state value of all steps."""
    return {"policy": ops.linear(ys, p["Wo"], p["bo"]), "value": ops.dot(ys, p["wv"], p["bv"])}


def simple_step(ops, p, x, states):
    """specs/backpropamine/simple.bpm: the modulator is the rate of all synapses."""
    before, h = states
    y, m = recurrent_activity(ops, p, x, before, h)
    return y, ops.clip(ops.add_outer(h, m * y, before), 1)


def simple_fanout_step(ops, p, x, states):
    """specs/backpropamine/simple_fanout.bpm: every receiving neuron has its own rate."""
    before, h = states
    y, m = recurrent_activity(ops, p, x, before, h)
    return y, ops.clip(ops.add_outer(h, (m * p["F"] + p["c"]) * y, before), 2)


def retroactive_step(ops, p, x, states):
    """specs/backpropamine/retroactive.bpm: the old trace reaches H, then takes the coincidence."""
    before, h, e = states
    y, m = recurrent_activity(ops, p, x, before, h)
    h = ops.clip(ops.add_product(h, m[:, :, None], e), 1)
    return y, h, ops.add_outer((1 - p["eta"]) * e, p["eta"] * y, before)


def lstm_inputs(ops, p, u):
    """All maps of u are one product, and so are all slow maps of h."""
    weights, bias = ops.concat([p["Xg"], p["Xc"]]), ops.concat([p["xg"] + p["hg"], p["xc"]])
    return ops.linear(u, weights, bias), p | {"slow": ops.concat([p["Hg"], p["W"]])}


def modulated_step(ops, p, x, states):
    """specs/plastic_lstm/modulated.bpm"""
    before, c, plastic = states
    n = before.shape[1]
    slow = ops.add_linear(x, before, p["slow"])
    gates = ops.sigmoid(slow[:, : 3 * n])
    f, k, o = gates[:, :n], gates[:, n : 2 * n], gates[:, 2 * n :]
    g = ops.tanh(slow[:, 3 * n :] + p["alpha"] * ops.matvec(plastic, before))
    c = f * c + k * g
    h = o * ops.tanh(c)
    m = ops.tanh(ops.dot(h, p["wm"], p["bm"]))[:, None]
    return h, c, ops.clip(ops.add_outer(plastic, (m * p["F"] + p["b"]) * g, before), 2)


def lstm_outputs(ops, p, hs):
    """Logits of all steps."""
    return {"logits": ops.linear(hs, p["Wo"], p["bo"])}


@dataclass(frozen=True)
class Network:
    """A network with the shapes of its tensors: one letter per axis, G for three gates."""

    spec: str
    prepare: Callable
    step: Callable
    read_out: Callable
    params: dict[str, str]
    states: dict[str, str]
    outputs: dict[str, str]


RECURRENT = {
    "Wx": "NI", "bx": "N", "W": "NN", "alpha": "NN", "wm": "N", "bm": "",
    "Wo": "AN", "bo": "A", "wv": "N", "bv": "",
}  # fmt: skip
LSTM = {
    "Xg": "GI", "xg": "G", "Hg": "GN", "hg": "G", "Xc": "NI", "xc": "N", "W": "NN", "alpha": "N",
    "wm": "N", "bm": "", "F": "N", "b": "N", "Wo": "ON", "bo": "O",
}  # fmt: skip


def _recurrent(name, step, more_params, more_states):
    """A network of the family in specs/backpropamine."""
    return Network(
        f"specs/backpropamine/{name}.bpm", recurrent_inputs, step, recurrent_outputs,
        RECURRENT | more_params, {"y": "N", "H": "NN"} | more_states, {"policy": "A", "value": ""},
    )  # fmt: skip


NETWORKS = {
    "retroactive": _recurrent("retroactive", retroactive_step, {"eta": ""}, {"E": "NN"}),
    "simple": _recurrent("simple", simple_step, {}, {}),
    "simple_fanout": _recurrent("simple_fanout", simple_fanout_step, {"F": "N", "c": "N"}, {}),
    "modulated": Network(
        "specs/plastic_lstm/modulated.bpm", lstm_inputs, modulated_step, lstm_outputs,
        LSTM, {"h": "N", "c": "N", "P": "NN"}, {"logits": "O"},
    ),
}  # fmt: skip
