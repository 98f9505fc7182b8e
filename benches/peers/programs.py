"""The compared programs: how to get numbers and times out of each.

A program computes outputs and gradients of a case (`evaluate`), and has a command that prints times as
JSON in the form of `bpm bench --json` (`bench_command`). `folder` is where it may leave files.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import cases
from networks import NETWORKS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def find_libraries():
    """Puts the empty libraries of setup.sh, and those beside them, on the path of the peers."""
    empty = Path(sys.prefix) / "empty"
    if empty.is_dir():
        beside = Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/*/lib")
        found = [empty, *beside, os.environ.get("LD_LIBRARY_PATH", "")]
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, found))


@dataclass(frozen=True)
class Settings:
    """What all benchmarks of a run share."""

    threads: int
    repeat: int
    peer_repeat: int


@dataclass(frozen=True)
class Bpm:
    """bpm with one of its back ends."""

    program: Path
    backend: str | None = None

    def title(self):
        """For people."""
        return f"bpm, {self.backend}" if self.backend else "bpm"

    def supports(self, case, settings):
        """Everything."""
        return True

    def _command(self, name, case, *options):
        backend = ["--backend", self.backend] if self.backend else []
        return [self.program, "-q", name, ROOT / NETWORKS[case.model].spec, *options, *backend]

    def evaluate(self, case, numbers, folder):
        """By `bpm run`."""
        files = {name: folder / f"bpm.{name}" for name in ("params", "inputs", "cotangents", "out")}
        save_file(numbers.params, files["params"])
        states = {f"init.{name}": x for name, x in numbers.states.items()}
        save_file({"u": numbers.inputs} | states, files["inputs"])
        save_file(numbers.bars, files["cotangents"])
        options = [a for name, file in files.items() for a in (f"--{name}", file)]
        axes = [a for name, size in case.axes.items() for a in ("--axis", f"{name}={size}")]
        subprocess.run(self._command("run", case, *options, *axes), check=True)
        return load_file(files["out"])

    def bench_command(self, case, settings, folder):
        """`bpm bench` draws its own numbers, in the same ranges."""
        options = ["--threads", str(settings.threads), "--repeat", str(case.repeat(settings.repeat))]
        return self._command("bench", case, "--json", *case.arguments(), *options)


@dataclass(frozen=True)
class Peer:
    """A framework, as a Python program of this folder."""

    name: str
    file: str
    variant: str

    def title(self):
        """For people."""
        return self.name

    def supports(self, case, settings):
        """Everything."""
        return True

    def _command(self, case, *options):
        common = [case.model, "--variant", self.variant, *case.arguments()]
        return [sys.executable, HERE / self.file, *common, *options]

    def evaluate(self, case, numbers, folder):
        """In a process of its own."""
        data, out = folder / "peer.data", folder / "peer.out"
        numbers.save(data)
        subprocess.run(self._command(case, "--data", data, "--out", out), check=True)
        return load_file(out)

    def bench_command(self, case, settings, folder):
        """On numbers with a fixed seed."""
        options = ["--threads", str(settings.threads), "--repeat", str(case.repeat(settings.peer_repeat))]
        return self._command(case, *options)


@dataclass(frozen=True)
class ByHand:
    """benches/reference: one network in C, for one thread."""

    program: Path
    order = ("Wx", "bx", "W", "alpha", "eta", "wm", "bm", "Wo", "bo", "wv", "bv")

    def title(self):
        """For people."""
        return "C by hand"

    def supports(self, case, settings):
        """One network, one thread."""
        return case.model == "retroactive" and settings.threads == 1

    def build(self):
        """The command of benches/reference/README.md."""
        self.program.parent.mkdir(parents=True, exist_ok=True)
        sources = [ROOT / "benches/reference" / name for name in ("main.c", "retroactive.c")]
        flags = ["-O3", "-march=native", "-std=c11"]
        subprocess.run(["cc", *flags, "-o", self.program, *sources, "-lm"], check=True)

    def _problem(self, case, numbers, states, path):
        sizes = [case.axes["N"], case.axes["I"], case.axes["A"], case.batch, case.steps, len(states)]
        arrays = [numbers.params[name] for name in self.order] + [numbers.inputs, *states]
        arrays += [numbers.bars["policy"], numbers.bars["value"]]
        with open(path, "wb") as file:
            np.asarray(sizes, np.int32).tofile(file)
            for x in arrays:
                np.ascontiguousarray(x, np.float32).tofile(file)
        return path

    def evaluate(self, case, numbers, folder):
        """By raw files."""
        problem, out = folder / "hand.problem", folder / "hand.out"
        self._problem(case, numbers, [numbers.states[name] for name in "yHE"], problem)
        command = [self.program, problem, "1", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results, found, at = np.fromfile(out, np.float32), {}, 0
        shapes = {f"out.{name}": numbers.bars[name].shape for name in ("policy", "value")}
        shapes |= {f"grad.{name}": numbers.params[name].shape for name in self.order}
        for name, shape in shapes.items():
            count = int(np.prod(shape, dtype=int))
            found[name] = results[at : at + count].reshape(shape)
            at += count
        return found

    def bench_command(self, case, settings, folder):
        """On the numbers of the peers."""
        problem = folder / f"hand.{case.size}"
        if not problem.exists():
            self._problem(case, cases.draw(case), [], problem)
        return [self.program, problem, str(case.repeat(settings.repeat))]


PEERS = {
    "eager": Peer("PyTorch eager", "torch_peer.py", "eager"),
    "compile": Peer("PyTorch torch.compile", "torch_peer.py", "compile"),
    "jax": Peer("JAX scan", "jax_peer.py", "scan"),
    "jax-step": Peer("JAX, remat per step", "jax_peer.py", "step"),
    "jax-segments": Peer("JAX, remat of segments", "jax_peer.py", "segments"),
    "c": ByHand(ROOT / "target/reference/retroactive"),
}
