"""The networks in JAX: one compiled scan over time, in float32 with the whole batch at once.

Three ways to keep what the gradient needs: `scan` stacks it for every step, `step` keeps the states
and computes a step again (jax.checkpoint of the step), `segments` keeps the states of every
sqrt(T)-th step and runs a segment again.
"""

import os
from functools import partial
from types import SimpleNamespace

import peer


def segment_count(steps):
    """The divisor of the number of steps next to its square root, from below."""
    return max(d for d in range(1, int(steps**0.5) + 1) if steps % d == 0)


def limit_threads(threads):
    """The pools of XLA are as large as the set of cores that the process may use."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])


args = peer.arguments(["scan", "step", "segments"]) if __name__ == "__main__" else None
if args:
    limit_threads(args.threads)  # before JAX looks
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402


def matvec(matrix, vector):
    """A matrix and a vector per row."""
    return jnp.einsum("bji,bi->bj", matrix, vector)


def clip(x, bound):
    """To ±bound; at a bound the gradient passes, as in bpm and PyTorch (that of jnp.clip is halved)."""
    return jnp.where(x > bound, bound, jnp.where(x < -bound, -bound, x))


OPS = SimpleNamespace(
    linear=lambda x, w, b: x @ w.T + b,
    add_linear=lambda x, y, w: x + y @ w.T,
    dot=lambda y, w, b: y @ w + b,
    clip=clip,
    concat=jnp.concatenate,
    tanh=jnp.tanh,
    sigmoid=jax.nn.sigmoid,
    matvec=matvec,
    synapses=lambda x, w, alpha, h, y: x + matvec(w + alpha * h, y),
    add_outer=lambda matrix, post, pre: matrix + post[:, :, None] * pre[:, None, :],
    add_product=lambda x, a, b: x + a * b,
)


def scan(step, states, xs, variant):
    """The activities of all steps."""
    if variant == "step":
        step = jax.checkpoint(step)
    if variant != "segments":
        return jax.lax.scan(step, states, xs)[1]
    count = segment_count(len(xs))
    segment = jax.checkpoint(partial(jax.lax.scan, step))
    _, ys = jax.lax.scan(segment, states, xs.reshape(count, -1, *xs.shape[1:]))
    return ys.reshape(len(xs), *ys.shape[2:])


def run(network, variant, params, inputs, states):
    """Outputs of all steps."""
    xs, p = network.prepare(OPS, params, inputs)

    def step(states, x):
        states = network.step(OPS, p, x, states)
        return states, states[0]

    return network.read_out(OPS, params, scan(step, states, xs, variant))


class Runner:
    """A network with its numbers as arrays of JAX, and its compiled functions."""

    def __init__(self, network, numbers, variant):
        """Takes the numbers over."""
        states = tuple(numbers.states[name] for name in network.states)
        self.given = jax.device_put((numbers.params, numbers.inputs, states))
        self.bars = jax.device_put(numbers.bars)
        outputs = partial(run, network, variant)

        def gradients(params, inputs, states, bars):
            found, pull = jax.vjp(lambda p: outputs(p, inputs, states), params)
            return found, pull(bars)[0]

        self.outputs, self.gradients = jax.jit(outputs), jax.jit(gradients)

    def forward(self):
        """Outputs only."""
        jax.block_until_ready(self.outputs(*self.given))

    def forward_backward(self):
        """Outputs, and gradients of the parameters."""
        return jax.block_until_ready(self.gradients(*self.given, self.bars))

    def result(self):
        """Outputs and gradients as arrays."""
        outputs, gradients = self.forward_backward()
        named = {f"out.{name}": x for name, x in outputs.items()}
        named |= {f"grad.{name}": x for name, x in gradients.items()}
        return {name: np.asarray(x) for name, x in named.items()}


if args:
    peer.main(args, Runner)
