"""Compares bpm with PyTorch, JAX and C by hand: first the numbers, then speed and memory.

All programs get the same parameters, inputs, initial states and cotangents of outputs; outputs and
gradients of all parameters must agree. Then they are timed in turn, each in its own process, so that
noise of the machine meets all. Times are wall-clock. The exit code is 1 if any number disagrees.
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

from cases import SIZES, cases, draw
from networks import NETWORKS
from programs import PEERS, ROOT, Bpm, ByHand, Settings, find_libraries

CHECKED_ROWS, CHECKED_STEPS, DRAWS = 8, 20, 3
TOLERANCE = 1e-3


def columns(statistic):
    """What a table shows of a process: `median` or `min` of its repetitions."""
    return {
        "forward, ms": lambda r: r["forward_ms"][statistic],
        "forward and backward, ms": lambda r: r["forward_backward_ms"][statistic],
        "peak memory, MiB": lambda r: r["peak_mib"],
    }


def relative_error(found, expected):
    """The norm of the difference by the norm of what is expected."""
    expected = expected.astype(np.float64)
    error = np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)
    return error if np.isfinite(error) else np.inf


def disagreement(first, program, case, folder, seed):
    """The largest relative error of a tensor, and its name. Matrices start in ±1, so that clips act."""
    numbers = draw(case, seed, states=1.0)
    expected = first.evaluate(case, numbers, folder)
    found = program.evaluate(case, numbers, folder)
    names = [f"out.{x}" for x in numbers.bars] + [f"grad.{x}" for x in numbers.params]
    return max((relative_error(expected[x], found[x]), x) for x in names)


def check(case, programs, folder):
    """Whether all agree with the first one.

    A value that meets a bound up to rounding is clipped in one program and not in another, and its
    gradient with it. That is rare, so another draw is free of it; a mistake is in all draws.
    """
    case = case.smaller(CHECKED_ROWS, CHECKED_STEPS)
    first, *others = programs
    print(f"\n{case.title()}: largest relative error of a norm against {first.title()}")
    fine = True
    for program in others:
        for seed in range(DRAWS):
            error, name = disagreement(first, program, case, folder, seed)
            agree = bool(error <= TOLERANCE)
            verdict = "ok" if agree else "differs" if seed + 1 < DRAWS else "WRONG"
            print(f"  {program.title():<24} {verdict:<7} {error:.1e} in {name}", flush=True)
            if agree:
                break
        fine &= agree
    return fine


def timed(command):
    """What a benchmark printed; with the share of a core its process got, if it does not know."""
    started, before = time.perf_counter(), os.times()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"share": used / (time.perf_counter() - started)} | json.loads(output)


def spread(numbers, digits):
    """The median and the range, if there is one."""
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}f}"
    return f"{median(numbers):.{digits}f} ({min(numbers):.{digits}f}–{max(numbers):.{digits}f})"


def cell(values, base):
    """Times or memory of one program, and the median ratio to the base in the same round."""
    text = spread(values, 2 if median(values) < 10 else 1)
    if base is None:
        return text
    ratios = [x / b for x, b in zip(values, base, strict=True) if b > 0]
    return f"{text} | {spread(ratios, 2)}" if ratios else f"{text} | "


def table(case, rounds, shown):
    """One line per program: medians over rounds of what is shown, ranges, ratios to the first program."""
    titles = list(rounds[0])
    print(f"\n{case.title()}\n\n| | " + " | ".join(f"{name} | ratio" for name in shown) + " |")
    print("|---" * (1 + 2 * len(shown)) + "|")
    for title in titles:
        cells = []
        for value in shown.values():
            base = [value(r[titles[0]]) for r in rounds]
            values = [value(r[title]) for r in rounds]
            cells.append(cell(values, base) if title != titles[0] else cell(values, None) + " | ")
        print(f"| {title} | " + " | ".join(cells) + " |")
    shares = {title: min(r[title]["share"] for r in rounds) for title in titles}
    least = min(shares, key=shares.get)
    print(f"\nThe least share of its cores that a program got: {shares[least]:.0%} ({least}).")


def selected(text, known, parser):
    """The parts of a list with commas."""
    parts = [part for part in text.split(",") if part]
    if unknown := [part for part in parts if part not in known]:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    return parts


def arguments():
    """The command line; lists are checked and cut."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = ", ".join(NETWORKS)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {known} [default: all]")
    parser.add_argument("--sizes", default="B", help="of A,B,C,D; the LSTM has one size [default: B]")
    parser.add_argument("--peers", default=",".join(PEERS), help="[default: %(default)s]")
    parser.add_argument("--bpm", type=Path, default=ROOT / "target/release/bpm", help="the program")
    parser.add_argument("--backend", default="", help="back ends of bpm, with commas [default: its own]")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each program")
    parser.add_argument(
        "--repeat", type=int, default=7, help="repetitions in a process of bpm and C; small sizes have more"
    )
    parser.add_argument("--peer-repeat", type=int, default=3, help="the same for a peer")
    parser.add_argument("--threads", type=int, default=1, help="of every program")
    parser.add_argument(
        "--best", action="store_true", help="the shortest repetition of a process, not the median"
    )
    parser.add_argument("--no-check", action="store_true", help="only time")
    args = parser.parse_args()
    args.models = [m for part in args.models for m in selected(part, NETWORKS, parser)] or list(NETWORKS)
    args.sizes = selected(args.sizes, SIZES, parser)
    args.peers = [PEERS[name] for name in selected(args.peers, PEERS, parser)]
    args.backend = args.backend.split(",") if args.backend else [None]
    return args


def run_round(case, programs, settings, folder):
    """One process of each program."""
    return {p.title(): timed(p.bench_command(case, settings, folder)) for p in programs}


def main():
    """Checks, then rounds, then tables."""
    args = arguments()
    find_libraries()
    settings = Settings(args.threads, args.repeat, args.peer_repeat)
    programs = [Bpm(args.bpm, backend) for backend in args.backend] + args.peers
    for program in programs:
        if isinstance(program, ByHand):
            program.build()

    def taking_part(case):
        return [p for p in programs if p.supports(case, settings)]

    chosen = cases(args.models, args.sizes)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fine = args.no_check or all([check(case, taking_part(case), folder) for case in chosen])
        rounds = {case.title(): [] for case in chosen}
        for k in range(args.rounds):
            for case in chosen:
                print(f"round {k + 1} of {args.rounds}: {case.title()}", file=sys.stderr)
                rounds[case.title()].append(run_round(case, taking_part(case), settings, folder))
    for case in chosen if args.rounds > 0 else []:
        table(case, rounds[case.title()], columns("min" if args.best else "median"))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
