"""Associative recall: a compiled plasticity rule inside an ordinary training script.

An episode shows a few pairs of a key and a value, then one of the keys, and the network says the value. Keys and values
are new in every episode, so they cannot be learned: connections must take them up while the episode runs. What is
trained, over episodes, is how they do so.

The cells (`# %%`) run one after the other, in a notebook or as a script. With PyTorch the network is a
`torch.nn.Module` like any other; without it the same training is done in NumPy.

    python examples/python/associative_recall.py [--quick] [--numpy]
"""

# %% The rule: a layer that corrects its own errors, at a rate that it computes itself.
import sys

import bpm
import numpy as np

SPEC = """
spec recall {
  /// Elements of a key and of a value; neurons of their codes.
  axis K = ?, V = ?, P = 24, Q = 12
  in key[K], value[V]
  /// One where a pair is shown.
  in mask shown

  learn Wk[P,K], Wv[Q,V], Wo[V,Q] ~ linear
  learn wm[P], bm ~ linear
  learn rate in (0, 1) = 0.5

  plastic H[Q,P] = 0

  k = tanh(Wk @ key)
  v = tanh(Wv @ value)
  r = H @ k
  modulator m = shown * rate * sigmoid(wm . k + bm)
  /// The delta rule: what the connections say of the key moves toward the value.
  H'[j,i] = clip(H + m * (v[j] - r[j]) * k[i], -1, 1)

  out recalled[V] = Wo @ r
}
"""
PAIRS, KEY, VALUE, BATCH = 3, 10, 4, 64
model = bpm.load(SPEC, axes={"K": KEY, "V": VALUE})
print(model)

# %% The task: arrays of shape [T, B, …], and what is to be said at the last step.


def episodes(random, batch=BATCH):
    """Inputs of a batch, and the values that belong to the keys of the last step, `[B, V]`."""
    signs = lambda *shape: random.choice([-1.0, 1.0], shape).astype(model.dtype)
    keys, values = signs(PAIRS + 1, batch, KEY), signs(PAIRS + 1, batch, VALUE)
    asked = random.integers(PAIRS, size=batch)
    rows = np.arange(batch)
    target = values[asked, rows]
    keys[PAIRS], values[PAIRS] = keys[asked, rows], 0.0
    shown = np.ones((PAIRS + 1, batch), model.dtype)
    shown[PAIRS] = 0.0
    return {"key": keys, "value": values, "shown": shown}, target


def share_right(recalled, target):
    """How many elements of the values have the right sign; 0.5 by chance."""
    return float(np.mean(np.sign(recalled[-1]) == target))


# %% With PyTorch: a module, an optimiser, a loss.


def train_with_torch(updates):
    import bpm.torch
    import torch

    network = bpm.torch.Module(model, seed=0)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    random = np.random.default_rng(0)
    for update in range(updates):
        inputs, target = episodes(random)
        outputs, _ = network({name: torch.from_numpy(x) for name, x in inputs.items()})
        loss = (outputs["recalled"][-1] - torch.from_numpy(target)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        report(update, loss.item(), share_right(outputs["recalled"].detach().numpy(), target))
    return {name: x.detach().numpy() for name, x in network.values().items()}


# %% With NumPy: the cotangent of the loss by hand, and Adam (Kingma and Ba, 2015) on raw numbers.


def train_with_numpy(updates, step=0.01, decay=(0.9, 0.999), epsilon=1e-8):
    raw = model.to_raw(model.init(seed=0))
    means = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in raw.items()}
    random = np.random.default_rng(0)
    for update in range(updates):
        inputs, target = episodes(random)
        tape = model.forward(model.from_raw(raw), inputs)
        recalled = tape.outputs["recalled"]
        cotangent = np.zeros_like(recalled)
        cotangent[-1] = 2.0 * (recalled[-1] - target) / target.size
        gradients = model.chain(raw, tape.backward({"recalled": cotangent}).params)
        for name, gradient in gradients.items():
            first, second = means[name]
            first += (1 - decay[0]) * (gradient - first)
            second += (1 - decay[1]) * (gradient**2 - second)
            unbiased = first / (1 - decay[0] ** (update + 1)), second / (1 - decay[1] ** (update + 1))
            raw[name] -= step * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon)
        report(update, np.mean((recalled[-1] - target) ** 2), share_right(recalled, target))
    return model.from_raw(raw)


def report(update, loss, right):
    if (update + 1) % 100 == 0:
        print(f"update {update + 1:5}   loss {loss:.3f}   right {right:.3f}", flush=True)


# %% Training, then new episodes. The plastic connections at the end of each are among the states.


def has_torch():
    try:
        import torch.nn  # noqa: F401, a folder called torch has none
    except (ImportError, OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    updates = 400 if "--quick" in sys.argv else 2000
    by_torch = has_torch() and "--numpy" not in sys.argv
    print("training in PyTorch" if by_torch else "training in NumPy")
    params = train_with_torch(updates) if by_torch else train_with_numpy(updates)
    inputs, target = episodes(np.random.default_rng(1), batch=1000)
    outputs, state = model(params, inputs)
    right = share_right(outputs["recalled"], target)
    print(
        f"1000 new episodes: right {right:.3f}; |H| {np.abs(state['H']).mean():.3f}, rate {float(params['rate']):.3f}"
    )
    if right < 0.85:
        sys.exit(f"the network has not learned to recall: {right:.3f} right, where 0.5 is chance")
