"""What the tests of the Python package share: specs, numbers, finite differences."""

import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

# Learned and constant starts, a range, a factor of a gradient, a penalty, a matrix, an input without gradient.
CELL = """spec cell {
  axis I = 3, N = ?, A = 2
  in u[I]
  in target s
  learn Wx[N,I], Wo[A,N], wm[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(-0.5, 0.5)
  learn eta in (0, 1) = 0.3
  learn tau > 1 = 2 gradscale 0.5
  fixed g = 0.9
  state y[N] = learn
  plastic H[N,N] = 0
  y' = tanh(Wx @ u + g * ((W + alpha * H) @ y) / tau + 0.1 * s)
  modulator m = tanh(wm . y')
  H'[j,i] = clip(H + eta * m * y'[j] * y[i], -1, 1)
  out a[A] = Wo @ y'
  out b = sum(y')
  penalty 0.3 * mean(y' * y')
}
"""

T, B, N = 6, 3, 5

RESET = np.zeros((T, B), bool)
RESET[0, 1] = RESET[2, 0] = RESET[3, 1] = RESET[4, 1] = True


def numbers(seed, shape, dtype):
    """Numbers in (-1, 1)."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def drawn(model, batch=B, steps=T, seed=0):
    """Inputs, states, cotangents of outputs and of states for a model, all of its type."""
    d = model.dtype
    inputs = {k: numbers(seed + 1, (steps, batch, *i.shape), d) for k, i in model.inputs.items()}
    states = {k: numbers(seed + 2, (batch, *s.shape), d) for k, s in model.states.items()}
    bars = {k: numbers(seed + 3, (steps, batch, *o.shape), d) for k, o in model.outputs.items()}
    if model.has_penalty:
        bars["penalty"] = np.asarray(1.7, d)
    ends = {k: numbers(seed + 4, (batch, *s.shape), d) for k, s in model.states.items()}
    return inputs, states, bars, ends


def parameters(model, seed=0):
    """Initial parameters in which no learned start is zero."""
    params = model.init(seed)
    for k, s in enumerate(model.states.values()):
        if s.learned:
            params[f"{s.name}.init"] = numbers(seed + 10 + k, s.shape, model.dtype)
    return params


def relative_error(found, expected):
    """The norm of the difference by the norm of what is expected; infinite if something is not finite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{found.shape} against {expected.shape}"
    error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12)
    return error if np.isfinite(error) else np.inf


def emulated():
    """Puts the emulated device in the place of all others, unless the tests are to run on a GPU; says why not, if it
    cannot be had.
    """
    import bpm

    if os.environ.get("BPM_TEST_DEVICE") == "cuda":
        return None
    os.environ["BPM_EMULATED_CUDA"] = "1"
    try:
        bpm.to_device(np.zeros(1))
    except bpm.DeviceError as reason:
        first = str(reason).splitlines()[0]
        print(f"NOT RUN: Python on a device: {first}", file=sys.stderr)
        return first
    return None


def placed(named):
    """Arrays by name, copied to the device."""
    import bpm

    return {k: bpm.to_device(x) for k, x in named.items()}


def host(array):
    """An array as one of NumPy, wherever it is."""
    return array.numpy() if hasattr(array, "numpy") else np.asarray(array)


def torch():
    """PyTorch, or `None`."""
    # Symbols of GPU libraries are resolved when called: an installation without them is good enough here.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        import torch.nn  # a folder called torch has none

        return torch
    except (ImportError, OSError, ValueError):
        return None
    finally:
        sys.setdlopenflags(flags)
