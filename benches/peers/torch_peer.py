"""The networks in PyTorch: eager, and with a compiled step, in float32 with the whole batch at once.

Eager mode runs one kernel per operation, so products and sums are fused by hand (addmm, baddbmm,
addcmul). The compiler fuses elementwise operations and sums over them, but cannot look into library
calls: for it, products of one row are written as elementwise operations.
"""

import logging
import os
import sys
from functools import partial
from types import SimpleNamespace

import peer

# Resolves symbols of GPU libraries only when called, so that empty ones will do.
sys.setdlopenflags(os.RTLD_LAZY)
import torch  # noqa: E402

# The compiler for processors does not need Triton.
logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)


def linear(x, w, b):
    """x W' + b"""
    return torch.nn.functional.linear(x, w, b)


def add_linear(x, y, w):
    """x + y W'"""
    return torch.addmm(x, y, w.t())


def dot(y, w, b):
    """w . y + b over the last axis."""
    return torch.matmul(y, w) + b


def clip(x, bound):
    """To ±bound."""
    return x.clamp(-bound, bound)


SHARED = {
    "linear": linear, "add_linear": add_linear, "dot": dot, "clip": clip, "concat": torch.cat,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid,
}  # fmt: skip


def library_matvec(matrix, vector):
    """A matrix and a vector per row."""
    return torch.bmm(matrix, vector.unsqueeze(2)).squeeze(2)


def library_synapses(x, w, alpha, h, y):
    """x + (W + alpha * H) @ y; the slow part of all rows is one product."""
    return add_linear(x, y, w) + library_matvec(alpha * h, y)


def library_add_outer(matrix, post, pre):
    """matrix + post pre' per row."""
    return torch.baddbmm(matrix, post.unsqueeze(2), pre.unsqueeze(1))


def fused_matvec(matrix, vector):
    """A matrix and a vector per row."""
    return (matrix * vector.unsqueeze(1)).sum(2)


def fused_synapses(x, w, alpha, h, y):
    """x + (W + alpha * H) @ y in one pass."""
    return x + fused_matvec(w + alpha * h, y)


def fused_add_outer(matrix, post, pre):
    """matrix + post pre' per row."""
    return matrix + post.unsqueeze(2) * pre.unsqueeze(1)


def fused_add_product(x, a, b):
    """x + a * b"""
    return x + a * b


EAGER = SimpleNamespace(
    **SHARED, matvec=library_matvec, synapses=library_synapses, add_outer=library_add_outer,
    add_product=torch.addcmul,
)  # fmt: skip
COMPILED = SimpleNamespace(
    **SHARED, matvec=fused_matvec, synapses=fused_synapses, add_outer=fused_add_outer,
    add_product=fused_add_product,
)  # fmt: skip
VARIANTS = {"eager": EAGER, "compile": COMPILED}


class Runner:
    """A network with its numbers as tensors."""

    def __init__(self, network, numbers, variant):
        """Takes the numbers over."""
        self.network, self.ops = network, VARIANTS[variant]
        self.step = partial(network.step, self.ops)
        if variant == "compile":
            self.step = torch.compile(self.step, fullgraph=True, dynamic=False)
        self.params = {name: torch.tensor(x, requires_grad=True) for name, x in numbers.params.items()}
        self.states = tuple(torch.tensor(numbers.states[name]) for name in network.states)
        self.inputs = torch.tensor(numbers.inputs)
        self.bars = {name: torch.tensor(x) for name, x in numbers.bars.items()}

    def run(self):
        """Outputs of all steps."""
        xs, p = self.network.prepare(self.ops, self.params, self.inputs)
        states, ys = self.states, []
        for x in xs.unbind(0):
            states = self.step(p, x, states)
            ys.append(states[0])
        return self.network.read_out(self.ops, self.params, torch.stack(ys))

    def forward(self):
        """Outputs only."""
        with torch.no_grad():
            self.run()

    def forward_backward(self):
        """Outputs, and gradients in the parameters."""
        for x in self.params.values():
            x.grad = None
        outputs = self.run()
        torch.autograd.backward(list(outputs.values()), [self.bars[name] for name in outputs])
        return outputs

    def result(self):
        """Outputs and gradients as arrays."""
        outputs = {f"out.{name}": x.detach().numpy() for name, x in self.forward_backward().items()}
        return outputs | {f"grad.{name}": x.grad.numpy() for name, x in self.params.items()}


if __name__ == "__main__":
    args = peer.arguments(VARIANTS)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # as the kernels of bpm do
    peer.main(args, Runner)
