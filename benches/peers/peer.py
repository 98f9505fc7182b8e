"""What the frameworks share as programs: arguments, timing, and results as files.

A framework gives a class whose objects hold one network with its numbers on its own side:
`forward()` and `forward_backward()` finish before they return, `result()` gives outputs `out.NAME`
and gradients `grad.NAME` of all parameters as arrays.
"""

import argparse
import json
import time
from pathlib import Path

from safetensors.numpy import save_file

import cases
from networks import NETWORKS


def arguments(variants):
    """The command line of a peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=NETWORKS)
    parser.add_argument("--variant", choices=variants, default=next(iter(variants)))
    parser.add_argument("--axis", action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda; JAX takes what JAX_PLATFORMS says")
    parser.add_argument("--data", type=Path, help="numbers to use; otherwise they are drawn")
    parser.add_argument("--out", type=Path, help="write outputs and gradients instead of timing")
    return parser.parse_args()


def peak_mib():
    """The peak resident memory of this process."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def times(work, repeat):
    """Milliseconds of `repeat` runs after one that warms up, and the share of a core they got."""
    work()
    used, began, ms = time.process_time(), time.perf_counter(), []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        ms.append(1e3 * (time.perf_counter() - started))
    share = (time.process_time() - used) / (time.perf_counter() - began)
    ms.sort()
    return {"median": ms[len(ms) // 2], "min": ms[0], "max": ms[-1]}, share


def bench(make, repeat):
    """Times in the form of `bpm bench --json`."""
    before = peak_mib()
    runner = make()
    forward, forward_share = times(runner.forward, repeat)
    both, both_share = times(runner.forward_backward, repeat)
    return {
        "forward_ms": forward,
        "forward_backward_ms": both,
        "peak_mib": peak_mib() - before,
        "share": min(forward_share, both_share),
    }


def main(args, runner):
    """One evaluation, or the times of one network."""
    axes = {name: int(size) for name, size in (a.split("=") for a in args.axis)}
    case = cases.Case(args.model, axes, args.batch, args.steps)
    numbers = cases.load(args.data) if args.data else cases.draw(case)

    def make():
        return runner(NETWORKS[args.model], numbers, args.variant)

    if args.out:
        save_file(make().result(), args.out)
    else:
        print(json.dumps(bench(make, args.repeat)))
