"""Compares the training of small language models: bpm, and PyTorch in three ways.

All programs train the same network on the same text, from the same parameters: the four conditions of
examples/language-model. First the losses of some updates must agree, then whole updates are timed: reading
a window of 20 words in 20 rows, softmax over 10,000 words, backward, clipping, descent. The programs take
turns, each in its own process. The exit code is 1 if losses disagree.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import programs

ROOT = programs.ROOT
CONDITIONS = ("lstm", "plastic", "simple", "retroactive")
PEERS = {"eager": "PyTorch eager", "compile": "PyTorch torch.compile", "nn": "PyTorch nn.LSTM"}
ROWS, WINDOW, WORDS = 20, 20, 10_000

# Losses of the first updates may differ by this, relatively. The check takes a small rate: at a rate of 1 the
# first updates overshoot, and what follows magnifies rounding.
TOLERANCE, CHECK_RATE = 1e-5, 0.1


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("conditions", nargs="*", default=CONDITIONS, metavar="CONDITION")
    parser.add_argument("--peers", default=",".join(PEERS), help="[default: all]")
    parser.add_argument("--updates", type=int, default=40, help="updates per process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bpm", type=Path, default=ROOT / "target/release/bpm")
    found = parser.parse_args()
    unknown = set(found.conditions) - set(CONDITIONS)
    if unknown:
        parser.error(f"no such condition: {', '.join(sorted(unknown))}; there are {', '.join(CONDITIONS)}")
    return found


def write_text(folder, updates):
    """A text of random words, few of them frequent, so that losses fall from the first update on.

    All 9,999 follow at the end, where no update arrives; the end of the line is one more.
    """
    words = [f"w{k}" for k in range(WORDS - 1)]
    random.Random(0).shuffle(words)
    weights = [1 / (k + 1) for k in range(len(words))]
    more = ROWS * (WINDOW * (updates + 2) + 1)
    text = random.Random(1).choices(words, weights, k=more) + words
    for split, part in {"train": text, "valid": words[:500], "test": words[:500]}.items():
        (folder / f"{split}.txt").write_text(" ".join(part) + "\n")


def train_bpm(args, condition, folder, name, updates, more=()):
    """Trains with bpm; the lines of its metrics, and the folder of the run."""
    out = folder / f"{condition}-{name}"
    sets = ["task.corpus=words", f"task.data={folder}", f"run.updates={updates}", "run.log_every=1", *more]
    recipe = ROOT / "examples/language-model" / f"basic-{condition}.toml"
    command = [args.bpm, "-q", "train", recipe, "--threads", str(args.threads), "--out", out]
    command += [a for s in sets for a in ("--set", s)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], out


def time_bpm(args, condition, folder, name):
    """Milliseconds per update."""
    lines, _ = train_bpm(args, condition, folder, name, args.updates)
    clock = [line["seconds"] for line in lines]
    return [1e3 * (b - a) for a, b in zip(clock, clock[1:], strict=False)]


def time_peer(args, condition, folder, variant, run, updates, rate=1.0):
    """The same from a peer."""
    command = [
        sys.executable, Path(__file__).with_name("language_peer.py"), condition, "--variant", variant,
        "--params", run / "params.safetensors", "--vocabulary", run / "vocabulary.txt",
        "--text", folder / "train.txt", "--updates", str(updates), "--threads", str(args.threads),
        "--rate", str(rate),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def agree(name, found, expected):
    """Whether losses are the same."""
    worst = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    word = "agree" if worst < TOLERANCE else "DISAGREE"
    print(f"  {name}: losses of {len(found)} updates {word}, within {worst:.1e}", flush=True)
    return worst < TOLERANCE


def compare(args, condition, folder):
    """One condition: the check, then the table."""
    print(f"{condition}", flush=True)
    _, start = train_bpm(args, condition, folder, "start", 1, ["optimiser.rate=1e-30"])
    peers = [p for p in args.peers.split(",") if p in PEERS and (p != "nn" or condition == "lstm")]
    checked = min(args.updates, 10)
    lines, _ = train_bpm(args, condition, folder, "check", checked, [f"optimiser.rate={CHECK_RATE}"])
    expected = [line["cross_entropy"] for line in lines]
    sound = True
    for p in peers:
        found = time_peer(args, condition, folder, p, start, checked, CHECK_RATE)
        sound &= agree(PEERS[p], found["losses"], expected)
    times = {name: [] for name in ["bpm", *peers]}
    for k in range(args.rounds):
        times["bpm"] += time_bpm(args, condition, folder, f"time{k}")[2:]
        for p in peers:
            times[p] += time_peer(args, condition, folder, p, start, args.updates)["ms"][2:]
    if args.rounds:
        print("\n| program | ms per update | words per second | to bpm |\n|---|---|---|---|")
        ours = statistics.median(times["bpm"])
        for name, ms in times.items():
            median = statistics.median(ms)
            rate = ROWS * WINDOW / median * 1e3
            print(f"| {PEERS.get(name, name)} | {median:.1f} | {rate:,.0f} | {median / ours:.2f} |")
        print(flush=True)
    return sound


def main():
    """All conditions."""
    args = arguments()
    programs.find_libraries()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_text(folder, args.updates)
        sound = [compare(args, condition, folder) for condition in args.conditions]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "target/peers/inductor"))
    sys.exit(main())
