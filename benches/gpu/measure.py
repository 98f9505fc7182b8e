#!/usr/bin/env python3
"""All that is to be known about bpm on a GPU, in one call: correctness first, then times.

    python3 benches/gpu/measure.py [--emulated] [--out FOLDER] [--bpm BINARY] [--tests BINARY] [--only STEP,...]

Writes FOLDER/results.json after every step, and FOLDER/results.md at the end. A step that fails is recorded and the
next one runs; the exit code is 1 if a number was wrong. `--emulated` runs the same steps on the emulated device, at
toy sizes: it shows that this program works, and its times mean nothing. README.md has the rest.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import driver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / "benches/peers"
STEPS = ("machine", "build", "correctness", "sanitizer", "bandwidth", "targets", "memory", "compile", "training", "python", "peers")

RETROACTIVE = "specs/backpropamine/retroactive.bpm"
SIMPLE = "specs/backpropamine/simple.bpm"
LSTM = "specs/plastic_lstm/modulated.bpm"

# Name, spec, the peers' model, axes, rows, steps, elements of matrix states per row.
TARGETS = [
    ("N=128 B=32", RETROACTIVE, "retroactive", {"N": 128, "I": 17, "A": 4}, 32, 200, 2 * 128**2),
    ("N=256 B=64", RETROACTIVE, "retroactive", {"N": 256, "I": 17, "A": 4}, 64, 200, 2 * 256**2),
    ("plastic LSTM N=1149 B=6", LSTM, "modulated", {"N": 1149, "I": 200, "O": 10}, 6, 70, 1149**2),
    ("one row, N=128", RETROACTIVE, "retroactive", {"N": 128, "I": 17, "A": 4}, 1, 200, 2 * 128**2),
    ("one row, N=1024", RETROACTIVE, "retroactive", {"N": 1024, "I": 17, "A": 4}, 1, 200, 2 * 1024**2),
]
TOYS = [
    ("N=9 B=3", RETROACTIVE, "retroactive", {"N": 9, "I": 5, "A": 2}, 3, 6, 2 * 9**2),
    ("plastic LSTM N=8 B=2", LSTM, "modulated", {"N": 8, "I": 5, "O": 3}, 2, 4, 8**2),
]
# A kernel for each step, and one for a whole sequence.
TIERS = ("1", "2")
# One way forward, the other backward.
MIXED = ("1,2", "2,1")
# What a kernel for each step moves. Forward: a matrix state is read and written; replayed: the same; backward: it is
# read, its cotangent read and written. Four bytes each.
BYTES = {"forward_ms": 8, "forward_backward_ms": 28}
VARIANTS = {
    "PyTorch eager": ("torch_peer.py", ["--variant", "eager", "--device", "cuda"]),
    "torch.compile": ("torch_peer.py", ["--variant", "compile", "--device", "cuda"]),
    "torch.compile, CUDA graph": ("torch_peer.py", ["--variant", "graph", "--device", "cuda"]),
    "JAX scan": ("jax_peer.py", ["--variant", "scan"]),
    "JAX, remat of segments": ("jax_peer.py", ["--variant", "segments"]),
}

# Recipes whose episodes live on the device, their toy sizes, and a score.
RECIPES = {
    "maze": ("examples/maze/simple.toml", ["--set", "task.size=5", "--set", "sizes.N=6", "--set", "task.steps=8"], "return"),
    "cue-reward": ("examples/cue-reward/small.toml", ["--set", "sizes.N=6", "--set", "task.steps=8"], "return"),
    "pattern-completion": ("examples/pattern-completion/small.toml", ["--set", "task.bits=8"], "accuracy"),
}


def run(command, env=None, check=True, limit=None):
    """A command's output."""
    done = subprocess.run(
        [str(c) for c in command], env=os.environ | (env or {}), capture_output=True, text=True, timeout=limit, cwd=ROOT
    )
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RuntimeError(f"{command[0]} {command[1] if len(command) > 1 else ''}: exit code {done.returncode}\n{tail}")
    return done


class Measure:
    """What the steps share."""

    def __init__(self, arguments):
        """Takes the arguments."""
        self.emulated, self.out = arguments.emulated, arguments.out
        self.bpm, self.tests = arguments.bpm, arguments.tests
        self.repeat = 1 if self.emulated else 20
        self.targets = TOYS if self.emulated else TARGETS
        self.env = {"BPM_EMULATED_CUDA": "1"} if self.emulated else {"BPM_TEST_DEVICE": "cuda"}
        self.results = {"emulated": self.emulated, "began": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "steps": {}}
        self.wrong = False

    def save(self):
        """All results so far."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(self.results, indent=2) + "\n")

    def step(self, name):
        """Runs a step; records what it gives, or why it gave nothing."""
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            found = getattr(self, f"run_{name}")()
        except NotImplementedError as skipped:
            found = {"not_run": str(skipped)}
        except Exception as error:  # the next step may still tell something
            traceback.print_exc()
            found = {"failed": str(error)}
            self.wrong |= name in ("build", "correctness", "sanitizer")
        found["seconds"] = round(time.monotonic() - began, 1)
        self.results["steps"][name] = found
        print(json.dumps(found, indent=2)[:4000], flush=True)
        self.save()

    # ------------------------------------------------------------------- steps

    def run_machine(self):
        """Who measures."""
        commit = run(["git", "rev-parse", "HEAD"], check=False).stdout.strip()
        smi = shutil.which("nvidia-smi")
        said = run([smi, "-q", "-d", "CLOCK,POWER,ECC"], check=False).stdout if smi else ""
        return {"host": platform.platform(), "cores": os.cpu_count(), "commit": commit, "nvidia_smi": said}

    def run_build(self):
        """bpm and the tests, unless they were given."""
        if self.bpm and self.tests:
            return {"given": [str(self.bpm), str(self.tests)]}
        profile = [] if self.emulated else ["--release"]
        said = run(["cargo", "build", "--locked", *profile, "-p", "bpm-runtime", "--message-format=json"]).stdout
        self.bpm = self.bpm or executable(said, "bpm")
        said = run(["cargo", "test", "--locked", *profile, "-p", "bpm-runtime", "--lib", "--no-run", "--message-format=json"]).stdout
        self.tests = self.tests or executable(said, "runtime")
        return {"bpm": str(self.bpm), "tests": str(self.tests)}

    def run_correctness(self):
        """Every spec of the library, against machine code and against the interpreter."""
        env = self.env | {"CARGO_MANIFEST_DIR": str(ROOT / "runtime")}
        done = run([self.tests, "engine::device", "--nocapture", "--test-threads=1"], env, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        bits = [line for line in lines if "have equal bits" in line]
        result = next((line for line in lines if line.startswith("test result")), "no result")
        failed = [line for line in lines if "panicked" in line or line.endswith("FAILED")]
        if done.returncode != 0:
            raise RuntimeError("\n".join([result, *failed[:10]]))
        return {"result": result, "bits": bits}

    def run_sanitizer(self):
        """compute-sanitizer over small runs of the main specs."""
        tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if self.emulated or not tool:
            raise NotImplementedError("no GPU" if self.emulated else "compute-sanitizer is not installed")
        found = {}
        for spec, axes in [(RETROACTIVE, "N=40 I=5 A=3"), (SIMPLE, "N=33 I=5 A=3"), (LSTM, "N=24 I=7 O=3")]:
            sizes = [a for axis in axes.split() for a in ("--axis", axis)]
            command = [self.bpm, "bench", spec, *sizes, "--batch", 3, "--steps", 7, "--repeat", 1, "--device", "cuda"]
            for check, tier in itertools.product(("memcheck", "racecheck", "synccheck", "initcheck"), TIERS):
                watched = [tool, "--tool", check, "--error-exitcode", 9, *command, "--tier", tier]
                done = run(watched, check=False, limit=300)
                last = [line for line in (done.stdout + done.stderr).splitlines() if "=====" in line][-3:]
                found[f"{spec} tier {tier} {check}"] = {"code": done.returncode, "said": last}
                # Padding that nothing reads is never written; initcheck says so and decides nothing.
                self.wrong |= done.returncode == 9 and check != "initcheck"
        return found

    def run_bandwidth(self):
        """What the device is and how fast it copies."""
        if self.emulated:
            raise NotImplementedError("no GPU")
        return driver.probe()

    def bench(self, spec, axes, batch, steps, *options, env=None, device="cuda"):
        """`bpm bench`."""
        sizes = [a for name, size in axes.items() for a in ("--axis", f"{name}={size}")]
        command = [self.bpm, "-q", "bench", spec, *sizes, "--batch", batch, "--steps", steps]
        command += ["--repeat", self.repeat, "--json", "--device", device, "--prefer", "dense", *options]
        return json.loads(run(command, self.env | (env or {})).stdout)

    def targets_of(self):
        """The targets as dictionaries."""
        names = ("name", "spec", "model", "axes", "batch", "steps", "elements")
        return [dict(zip(names, target)) for target in self.targets]

    def run_targets(self):
        """Forward, and forward with backward, of every target, on the device by every tier, and on the processor."""
        rate = self.results["steps"].get("bandwidth", {}).get("copy_bytes_per_second")
        found = {}
        for t in self.targets_of():
            tiers = {tier: self.tier(t, tier, rate) for tier in (*TIERS, *MIXED, "auto")}
            one = tiers["auto"]
            threads = os.cpu_count() or 1
            self_repeat, self.repeat = self.repeat, min(self.repeat, 3)
            cpu = self.bench(t["spec"], t["axes"], t["batch"], t["steps"], "--threads", threads, device="cpu")
            self.repeat = self_repeat
            found[t["name"]] = {"cuda": one, "cpu": cpu, "tiers": tiers}
        return found

    def tier(self, t, tier, rate):
        """A target with the kernels that `--tier` asks for, or why there are none: what it estimates, what it takes."""
        try:
            one = self.bench(t["spec"], t["axes"], t["batch"], t["steps"], "--tier", tier)
        except RuntimeError as refused:
            if tier in ("1", "auto") or "no kernels of whole sequences" not in str(refused):
                raise
            return {"not_run": next(line for line in str(refused).splitlines() if "no kernels of" in line)}
        for key, per_element in BYTES.items():
            moved = per_element * t["elements"] * t["batch"] * t["steps"]
            one[f"us_per_step_{key}"] = 1e3 * one[key]["median"] / t["steps"]
            # Whole sequences keep states on the chip: their share says nothing of the memory.
            shared = rate and tier == "1"
            one[f"share_of_copy_{key}"] = moved / (one[key]["median"] * 1e-3) / rate if shared else None
        return one

    def run_memory(self):
        """Long sequences: what the device's memory must hold."""
        steps = 10 if self.emulated else 1000
        found = {}
        for t in self.targets_of()[:2]:
            one = self.bench(t["spec"], t["axes"], t["batch"], steps)
            found[f"{t['name']} T={steps}"] = {k: one[k] for k in ("planned_mib", "forward_backward_ms")}
        return found

    def run_compile(self):
        """How long compilation takes, the first time and from the cache."""
        found = {}
        for t in self.targets_of()[:3]:
            with tempfile.TemporaryDirectory() as folder:
                once = [self.bench(t["spec"], t["axes"], 1, 2, env={"BPM_CACHE": folder}) for _ in range(2)]
            found[t["name"]] = {"cold_ms": once[0]["compile_ms"], "cached_ms": once[1]["compile_ms"]}
        return found

    def trained(self, recipe, options, folder):
        """The lines of metrics of a short run, one per update."""
        updates = 3 if self.emulated else 60
        command = [self.bpm, "-q", "train", recipe, "--seed", 1, "--updates", updates, "--out", folder, *options]
        command += ["--set", "run.log_every=1", "--set", f"run.checkpoint_every={updates}"]
        run(command, self.env, limit=900)
        return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]

    def run_training(self):
        """Updates of tasks with code for devices: there as a whole, with the processor's answers and losses, and on the processor."""
        found = {}
        ways = {
            "device": ["--device", "cuda"],
            "host": ["--device", "cuda", "--episodes", "host"],
            "cpu": ["--device", "cpu"],
        }
        for name, (recipe, toy, score) in RECIPES.items():
            small = [*toy, "--set", "run.batch=2"] if self.emulated else []
            lines = {}
            with tempfile.TemporaryDirectory() as folder:
                for way, options in ways.items():
                    lines[way] = self.trained(recipe, [*options, *small], Path(folder) / way)
            first = {way: one[0][score] for way, one in lines.items()}
            # Same seed, same episodes: before parameters have moved, to the last place.
            self.wrong |= len(set(first.values())) != 1
            each = {way: 1e3 * (one[-1]["seconds"] - one[0]["seconds"]) / (len(one) - 1) for way, one in lines.items()}
            last = {way: one[-1][score] for way, one in lines.items()}
            found[name] = {"ms_per_update": each, "first_score": first, "last_score": last}
        return found

    def run_python(self):
        """Models of Python on arrays and tensors of the device, against the processor: the tests of the package."""
        if run([sys.executable, "-P", "-c", "import bpm, numpy"], check=False).returncode != 0:
            raise NotImplementedError(f"{sys.executable} has no bpm: pip install ./python")
        tests = [sys.executable, "-P", "-m", "unittest", "discover", "--start-directory", ROOT / "python/tests"]
        found = {"NumPy": [*tests, "-p", "test_devices.py"], "PyTorch": [*tests, "-p", "test_torch.py", "-k", "OnADevice"]}
        ready = "import torch" + ("" if self.emulated else "; assert torch.cuda.is_available()")
        has_torch = run([sys.executable, "-P", "-c", ready], check=False).returncode == 0
        for name, command in found.items():
            if name == "PyTorch" and not has_torch:
                found[name] = "NOT RUN: torch is not installed, or sees no GPU"
                continue
            done = run(command, self.env, check=False, limit=1800)
            lines = done.stderr.strip().splitlines()
            failed = [line for line in lines if line.startswith(("FAIL:", "ERROR:"))]
            found[name] = "; ".join([*failed, *lines[-1:]])
            self.wrong |= done.returncode != 0
        return found | {"result": "; ".join(f"{name}: {said}" for name, said in found.items())}

    def run_peers(self):
        """The same networks elsewhere."""
        found = {}
        for t in self.targets_of():
            sizes = [a for name, size in t["axes"].items() for a in ("--axis", f"{name}={size}")]
            found[t["name"]] = {}
            for name, (file, options) in VARIANTS.items():
                module = "jax" if file.startswith("jax") else "torch"
                try:
                    ready = "import torch; assert torch.cuda.is_available()" if module == "torch" else (
                        "import jax; assert jax.devices()[0].platform == 'gpu'"
                    )
                    if self.emulated:
                        ready, options = f"import {module}", [o.replace("cuda", "cpu") for o in options]
                        if "graph" in options:
                            raise NotImplementedError("no GPU")
                    if run([sys.executable, "-c", ready], check=False).returncode != 0:
                        raise NotImplementedError(f"{module} is not installed, or sees no GPU")
                    command = [sys.executable, PEERS / file, t["model"], *options, *sizes]
                    command += ["--batch", t["batch"], "--steps", t["steps"], "--repeat", self.repeat]
                    found[t["name"]][name] = json.loads(run(command, limit=900).stdout)
                except NotImplementedError as skipped:
                    found[t["name"]][name] = {"not_run": str(skipped)}
                except Exception as error:  # out of memory is a result
                    found[t["name"]][name] = {"failed": str(error)[-600:]}
                self.results["steps"]["peers"] = found
                self.save()
        return found


def executable(said, name):
    """The path of a binary in cargo's messages."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    paths = [m["executable"] for m in lines if m.get("executable") and m["target"]["name"] == name]
    if not paths:
        raise RuntimeError(f"cargo made no {name}")
    return Path(paths[-1])


def table(results):
    """The results for people."""
    steps = results["steps"]
    lines = ["# bpm on a GPU", ""]
    if results["emulated"]:
        lines += ["**Emulated: nothing below is a measurement.**", ""]
    about = steps.get("bandwidth", {})
    if "name" in about:
        rate = about["copy_bytes_per_second"] / 1e12
        lines += [f"{about['name']}, CUDA {about['driver_cuda']}; copies {rate:.2f} TB/s.", ""]
    lines += ["| target | program | forward ms | forward+backward ms | µs per step | share of copy | ratio to bpm |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, found in steps.get("targets", {}).items():
        if not isinstance(found, dict) or "cuda" not in found:
            continue
        ours = found["cuda"]
        rows = []
        for tier, one in found["tiers"].items():
            share = one.get("share_of_copy_forward_backward_ms")
            rows.append((f"bpm, tier {tier}", one, f"{100 * share:.0f} %" if share else ""))
        rows += [(f"bpm, processor, {found['cpu']['threads']} threads", found["cpu"], "")]
        peers = steps.get("peers", {}).get(name, {})
        rows += [(peer, one, "") for peer, one in peers.items()]
        count = next(t[5] for t in TARGETS + TOYS if t[0] == name)
        for program, one, part in rows:
            if "forward_ms" not in one:
                lines.append(f"| {name} | {program} | {one.get('not_run') or 'failed'} | | | | |")
                continue
            both = one["forward_backward_ms"]["median"]
            ratio = both / ours["forward_backward_ms"]["median"]
            lines.append(
                f"| {name} | {program} | {one['forward_ms']['median']:.2f} | {both:.2f} "
                f"| {1e3 * both / count:.1f} | {part} | {ratio:.1f} |"
            )
    lines += ["", "| step | |", "|---|---|"]
    for name, found in steps.items():
        said = found.get("failed") or found.get("not_run") or found.get("result") or "done"
        lines.append(f"| {name} | {said.splitlines()[0] if said else ''} |")
    for name, one in steps.get("memory", {}).items():
        if isinstance(one, dict):
            lines.append(f"| memory, {name} | {one['planned_mib']:.0f} MiB |")
    for name, one in steps.get("compile", {}).items():
        if isinstance(one, dict):
            lines.append(f"| compilation, {name} | {one['cold_ms']:.0f} ms, cached {one['cached_ms']:.1f} ms |")
    for name, one in steps.get("training", {}).items():
        if isinstance(one, dict):
            each = ", ".join(f"{way} {ms:.2f} ms" for way, ms in one["ms_per_update"].items())
            same = "the same" if len(set(one["first_score"].values())) == 1 else "OTHER"
            lines.append(f"| update, {name} | {each}; {same} first episodes |")
    return "\n".join(lines) + "\n"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--emulated", "--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "target/gpu")
    parser.add_argument("--bpm", type=Path)
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--only", default=",".join(STEPS))
    arguments = parser.parse_args()
    measure = Measure(arguments)
    wanted = arguments.only.split(",")
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        sys.exit(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    for name in STEPS:
        # Without its binaries nothing else can run.
        if name in wanted or (name == "build" and not (measure.bpm and measure.tests)):
            measure.step(name)
    (measure.out / "results.md").write_text(table(measure.results))
    print((measure.out / "results.md").read_text())
    sys.exit(1 if measure.wrong else 0)


if __name__ == "__main__":
    main()
