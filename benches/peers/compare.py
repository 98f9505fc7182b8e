"""Compares bpm with PyTorch eager: first the numbers, then speed and memory.

Both sides get the same parameters, inputs and initial states; outputs and gradients must agree. Then
each is timed in turn, in its own process, so that noise of the machine meets both. Times are
wall-clock. The exit code is 1 if any number disagrees.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import load_file, save_file

import torch_peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BACKPROPAMINE = {"axes": {"N": 100, "I": 17, "A": 4}, "batch": 30, "steps": 200}
CASES = {
    "retroactive": {"spec": "specs/backpropamine/retroactive.bpm"} | BACKPROPAMINE,
    "simple": {"spec": "specs/backpropamine/simple.bpm"} | BACKPROPAMINE,
    "modulated": {
        "spec": "specs/plastic_lstm/modulated.bpm",
        "axes": {"N": 200, "I": 200, "O": 10},
        "batch": 20,
        "steps": 35,
    },
}
CHECKED_STEPS = 20
TOLERANCE = 1e-3


def axis_arguments(case):
    return [a for name, size in case["axes"].items() for a in ("--axis", f"{name}={size}")]


def run_ours(bpm, case, params, inputs, states, shapes):
    """Outputs and gradients by `bpm run`."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}.safetensors" for name in ("params", "inputs", "cotangents", "out")}
        save_file(params, files["params"])
        save_file({"u": inputs} | {f"init.{name}": x for name, x in states.items()}, files["inputs"])
        save_file({name: np.full(s, 0.1, np.float32) for name, s in shapes.items()}, files["cotangents"])
        options = [a for name, file in files.items() for a in (f"--{name}", file)]
        subprocess.run([bpm, "-q", "run", ROOT / case["spec"], *options, *axis_arguments(case)], check=True)
        return load_file(files["out"])


def check(bpm, model, case):
    """Whether outputs and gradients agree. Matrices start anywhere in their range, so clips act."""
    drawn = torch_peer.draw(model, case["axes"], case["batch"], CHECKED_STEPS, seed=1, states=1.0)
    theirs = torch_peer.evaluate(model, *drawn)
    shapes = {name[4:]: x.shape for name, x in theirs.items() if name.startswith("out.")}
    ours = run_ours(bpm, case, *drawn, shapes)
    print(f"\n{model}: relative error of the norm, {CHECKED_STEPS} steps")
    worst = 0.0
    for name, x in theirs.items():
        scale = np.linalg.norm(x.astype(np.float64))
        error = np.linalg.norm(ours[name].astype(np.float64) - x) / scale
        worst = max(worst, error if np.isfinite(error) else np.inf)
        print(f"  {name:<14} {error:8.1e}   (norm {scale:.3g})")
    print(f"  {'ok' if worst <= TOLERANCE else 'WRONG'}: worst {worst:.1e}, tolerance {TOLERANCE:.0e}")
    return worst <= TOLERANCE


def timed(command):
    """What a benchmark printed, with the share of a core its process got."""
    started, before = time.perf_counter(), os.times()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(output) | {"share": used / (time.perf_counter() - started)}


def commands(bpm, model, case, args):
    """Both sides with equal arguments."""
    common = axis_arguments(case) + ["--batch", str(case["batch"]), "--steps", str(case["steps"])]
    common += ["--threads", str(args.threads), "--repeat"]
    return {
        "bpm": [bpm, "-q", "bench", "--json", ROOT / case["spec"], *common, str(args.repeat)],
        "torch": [sys.executable, HERE / "torch_peer.py", model, *common, str(args.torch_repeat)],
    }


def spread(numbers, unit=""):
    return f"{median(numbers):.1f}{unit} ({min(numbers):.1f}–{max(numbers):.1f})"


def table(results):
    """Medians over rounds of the medians of each process, and their range."""
    print("\n| model | | bpm | PyTorch eager | ratio |\n|---|---|---|---|---|")
    rows = {
        "forward, ms": lambda r: r["forward_ms"]["median"],
        "forward and backward, ms": lambda r: r["forward_backward_ms"]["median"],
        "peak memory, MiB": lambda r: r["peak_mib"],
    }
    for model, rounds in results.items():
        for name, value in rows.items():
            ours, theirs = ([value(r[side]) for r in rounds] for side in ("bpm", "torch"))
            ratios = [b / a for a, b in zip(ours, theirs)]
            print(f"| {model} | {name} | {spread(ours)} | {spread(theirs)} | {spread(ratios, '×')} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(CASES)} [default: all]")
    parser.add_argument("--bpm", default=ROOT / "target/release/bpm", help="the program")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side")
    parser.add_argument("--repeat", type=int, default=7, help="repetitions in a process of bpm")
    parser.add_argument("--torch-repeat", type=int, default=3, help="repetitions in a process of PyTorch")
    parser.add_argument("--threads", type=int, default=1, help="of either side")
    parser.add_argument("--no-check", action="store_true", help="only time")
    args = parser.parse_args()
    if unknown := set(args.models) - set(CASES):
        parser.error(f"unknown model: {', '.join(sorted(unknown))}")
    torch_peer.set_up(args.threads)
    cases = {name: case for name, case in CASES.items() if name in (args.models or CASES)}
    fine = args.no_check or all([check(args.bpm, name, case) for name, case in cases.items()])
    results = {name: [] for name in cases}
    for k in range(args.rounds):
        for model, case in cases.items():
            print(f"round {k + 1} of {args.rounds}: {model}", file=sys.stderr)
            pair = commands(args.bpm, model, case, args)
            results[model].append({side: timed(command) for side, command in pair.items()})
    if args.rounds > 0:
        table(results)
        share = min(side["share"] for rounds in results.values() for r in rounds for side in r.values())
        print(f"\nThe least share of its cores that a process got: {share / args.threads:.0%}.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
