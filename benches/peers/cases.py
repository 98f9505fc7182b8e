"""What is compared: sizes, and the numbers that every program gets."""

from dataclasses import dataclass, replace

import numpy as np
from safetensors.numpy import load_file, save_file

from networks import NETWORKS

# Batch, neurons, steps of the recurrent networks.
SIZES = {"A": (1, 100, 200), "B": (30, 100, 200), "C": (10, 200, 120), "D": (64, 256, 50)}


@dataclass(frozen=True)
class Case:
    """A network at a size."""

    model: str
    axes: dict[str, int]
    batch: int
    steps: int
    size: str = ""

    def title(self):
        """For people."""
        size = f" {self.size}" if self.size else ""
        return f"{self.model}{size}: batch {self.batch}, N = {self.axes['N']}, {self.steps} steps"

    def smaller(self, rows, steps):
        """The same network with at most as many rows and steps."""
        return replace(self, batch=min(rows, self.batch), steps=min(steps, self.steps))

    def repeat(self, count):
        """Repetitions of a benchmark: `count` at size B, up to ten times as many where a run is short."""
        batch, neurons, steps = SIZES["B"]
        work = self.batch * self.axes["N"] ** 2 * self.steps
        return count * min(max(batch * neurons**2 * steps // work, 1), 10)

    def arguments(self):
        """What bpm and the peers read."""
        axes = [a for name, size in self.axes.items() for a in ("--axis", f"{name}={size}")]
        return axes + ["--batch", str(self.batch), "--steps", str(self.steps)]


def cases(models, sizes):
    """The LSTM has one size, the others have those of the table."""
    found = []
    for model in models:
        if model == "modulated":
            found.append(Case(model, {"N": 200, "I": 200, "O": 10}, 20, 35))
            continue
        for size in sizes:
            batch, neurons, steps = SIZES[size]
            found.append(Case(model, {"N": neurons, "I": 17, "A": 4}, batch, steps, size))
    return found


@dataclass(frozen=True)
class Numbers:
    """Arrays by name: parameters, inputs [T, B, I], initial states [B, ...], cotangents [T, B, ...]."""

    params: dict
    inputs: np.ndarray
    states: dict
    bars: dict

    def save(self, path):
        """As one file."""
        groups = {"params": self.params, "states": self.states, "bars": self.bars}
        groups["inputs"] = {"u": self.inputs}
        save_file({f"{g}.{name}": x for g, arrays in groups.items() for name, x in arrays.items()}, path)


def load(path):
    """What `Numbers.save` wrote."""
    tensors = load_file(path)

    def group(prefix):
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    return Numbers(group("params."), tensors["inputs.u"], group("states."), group("bars."))


def draw(case, seed=0, states=0.0):
    """Random numbers; initial states are uniform in ±states.

    Cotangents are positive: sums of them do not cancel, so that a clip which rounds the other way in
    another program does not count for much in gradients that are one number.
    """
    rng = np.random.default_rng(seed)
    network, axes = NETWORKS[case.model], case.axes | {"G": 3 * case.axes["N"]}

    def uniform(scale, *shape):
        return rng.uniform(-scale, scale, shape).astype(np.float32)

    def sizes(letters):
        return [axes[a] for a in letters]

    def param(name, letters):
        if name == "eta":
            return np.asarray(0.1, np.float32)
        return uniform(0.1 if name == "alpha" else axes["N"] ** -0.5, *sizes(letters))

    return Numbers(
        {name: param(name, letters) for name, letters in network.params.items()},
        uniform(1.0, case.steps, case.batch, axes["I"]),
        {name: uniform(states, case.batch, *sizes(x)) for name, x in network.states.items()},
        {name: abs(uniform(1.0, case.steps, case.batch, *sizes(x))) for name, x in network.outputs.items()},
    )
