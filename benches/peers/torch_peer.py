"""The networks in PyTorch: eager, and with a compiled step, in float32 with the whole batch at once.

On a GPU there is a third variant, `graph`: all kernels of a sequence, forward and backward, of the compiled
step, captured once as a CUDA graph and replayed.

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
VARIANTS = {"eager": EAGER, "compile": COMPILED, "graph": COMPILED}


def capture(work):
    """Records what `work` launches on the GPU; gives what replays it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # compiles and allocates
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class Runner:
    """A network with its numbers as tensors."""

    def __init__(self, network, numbers, variant, device="cpu"):
        """Takes the numbers over."""
        self.network, self.ops, self.device = network, VARIANTS[variant], device
        self.step = partial(network.step, self.ops)
        if variant != "eager":
            self.step = torch.compile(self.step, fullgraph=True, dynamic=False)
        tensor = partial(torch.tensor, device=device)
        self.params = {name: tensor(x, requires_grad=True) for name, x in numbers.params.items()}
        self.states = tuple(tensor(numbers.states[name]) for name in network.states)
        self.inputs = tensor(numbers.inputs)
        self.bars = {name: tensor(x) for name, x in numbers.bars.items()}
        self.replays = {} if variant == "graph" else None

    def finish(self, name, work):
        """Does the work, or replays it where it was recorded; waits for the device."""
        if self.replays is None:
            work()
        else:
            if name not in self.replays:
                self.replays[name] = capture(work)
            self.replays[name]()
        if self.device != "cpu":
            torch.cuda.synchronize()

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
            self.finish("forward", self.run)

    def forward_backward(self):
        """Outputs, and gradients in the parameters."""
        self.finish("both", self.gradients)
        return self.outputs

    def gradients(self):
        """The same, without waiting."""
        for x in self.params.values():
            x.grad = None
        outputs = self.run()
        torch.autograd.backward(list(outputs.values()), [self.bars[name] for name in outputs])
        self.outputs = outputs

    def result(self):
        """Outputs and gradients as arrays."""
        outputs = {f"out.{name}": x.detach().cpu().numpy() for name, x in self.forward_backward().items()}
        return outputs | {f"grad.{name}": x.grad.cpu().numpy() for name, x in self.params.items()}


if __name__ == "__main__":
    args = peer.arguments(VARIANTS)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # as the kernels of bpm do
    peer.main(args, partial(Runner, device=args.device))
