#!/usr/bin/env python3
"""Compiles the CUDA source of every spec of the library with NVRTC, which needs no GPU.

    tests/nvrtc.py BPMC [--arch sm_80 --arch sm_90a] [--size 100] [--tier 1 --tier auto] [--alternate] [--training] [--jobs 2] [SPEC...]

BPMC is the binary. NVRTC comes from the wheel nvidia-cuda-nvrtc-cu12 of the Python that runs this
(tests/nvrtc.sh installs it). Every kernel must compile for every architecture, with the flags that the
source names, without registers spilled to memory. Kernels of whole sequences (tiers 2 and auto) are compared
with the registers that their mapping foresees. Without SPEC some specs are compiled at large sizes, too, for which
blocks share the rows of a batch (LARGE). With --alternate each spec is compiled for one of the architectures,
in turn. Without specs on the command line, the kernels of training are compiled, too; --training compiles these alone,
and then BPMC is not run. Prints one line per spec, and fails if one fails.
"""

import argparse
import concurrent.futures
import ctypes
import itertools
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Specs at sizes for which a device needs several blocks for a row: file, spec, sizes, rows of the batch.
LARGE = [
    ("backpropamine/retroactive.bpm", "retroactive", {"N": 256, "I": 17, "A": 4}, 64),
    ("backpropamine/retroactive.bpm", "retroactive", {"N": 512, "I": 17, "A": 4}, 16),
    ("plastic_lstm/plastic.bpm", "plastic_lstm", {"N": 1149, "I": 400, "O": 50}, 6),
    ("language_model/large_plastic.bpm", "large_plastic", {"N": 1149, "I": 400}, 6),
    ("language_model/large_modulated.bpm", "large_modulated", {"N": 1149, "I": 400}, 6),
]


def library():
    """NVRTC, from the wheel."""
    try:
        import nvidia.cuda_nvrtc as wheel
    except ImportError:
        sys.exit("NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")
    folder = pathlib.Path(next(iter(wheel.__path__))) / "lib"
    # NVRTC looks for its builtins by name.
    for name in sorted(folder.glob("libnvrtc-builtins.so*")):
        ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(sorted(folder.glob("libnvrtc.so*"))[0]))


class Program:
    """A source in the hands of NVRTC."""

    def __init__(self, nvrtc, text, name):
        self.nvrtc = nvrtc
        self.handle = ctypes.c_void_p()
        self.call(
            "nvrtcCreateProgram", ctypes.byref(self.handle), text.encode(), name.encode(), 0, None, None
        )

    def call(self, function, *arguments):
        code = getattr(self.nvrtc, function)(*arguments)
        if code != 0:
            self.nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{function}: {self.nvrtc.nvrtcGetErrorString(code).decode()}")

    def compile(self, flags):
        """The log of a compilation; an error if it fails."""
        array = (ctypes.c_char_p * len(flags))(*[f.encode() for f in flags])
        code = self.nvrtc.nvrtcCompileProgram(self.handle, len(flags), array)
        size = ctypes.c_size_t()
        self.call("nvrtcGetProgramLogSize", self.handle, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.call("nvrtcGetProgramLog", self.handle, log)
        if code != 0:
            raise RuntimeError(log.value.decode())
        return log.value.decode()

    def machine_code_bytes(self):
        size = ctypes.c_size_t()
        self.call("nvrtcGetCUBINSize", self.handle, ctypes.byref(size))
        return size.value

    def close(self):
        self.nvrtc.nvrtcDestroyProgram(ctypes.byref(self.handle))


def output(*command):
    """What a command prints, to both of its streams; what it says if it fails is said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr or f"{' '.join(map(str, command))} failed")
    return done.stdout, done.stderr


def specs(bpmc, files):
    """Every spec: the file, its name, its open axes."""
    for path in files:
        _, said = output(bpmc, "check", "-v", path)
        for name in re.findall(r"^spec (\w+): ", said, re.M):
            model, _ = output(bpmc, "compile", path, "--spec", name, "--emit", "model")
            axes = model.split("axes\n", 1)[1].split("parameters\n", 1)[0]
            yield path, name, re.findall(r"^  (\w+) = (?:\?|\d+)$", axes, re.M)


def emit(bpmc, path, name, sizes, batch, tier, arch):
    """The CUDA source of a spec and the flags that it wants."""
    options = ["--target", "cuda", "--tier", tier, "--arch", arch, "--batch", str(batch)]
    command = [bpmc, "compile", path, "--spec", name, *options]
    command += [f"--axis={axis}={size}" for axis, size in sizes.items()]
    text, _ = output(*command)
    return text, re.search(r"Compile it with (.*)\.$", text, re.M).group(1).split()


def judge(nvrtc, text, name, flags, arch):
    """How many kernels there are, the most registers that one takes, and what is wrong."""
    program = Program(nvrtc, text, f"{name}.cu")
    try:
        log = program.compile([*flags, f"--gpu-architecture={arch}", "--ptxas-options=--verbose"])
        if program.machine_code_bytes() == 0:
            return 0, 0, ["there is no machine code"]
    except RuntimeError as error:
        return 0, 0, ["\n".join(str(error).splitlines()[:12])]
    finally:
        program.close()
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    used = dict(re.findall(r"Compiling entry function '(\w+)'[^\0]*?Used (\d+) registers", log))
    for kernel, foreseen in re.findall(r"// launch (\w+):.*registers foreseen = (\d+)", text):
        print(f"  {kernel}: {foreseen} registers foreseen, {used.get(kernel)} used")
    wrong = [] if len(registers) == len(re.findall(r"__global__ void", text)) else ["some kernels were not reported"]
    wrong += [line for line in log.splitlines() if "warning" in line]
    if any(int(n) > 0 for row in spills for n in row):
        wrong.append("registers are spilled, or a stack is used")
    return len(registers), max(registers, default=0), wrong


def training():
    """The sources of training on a device, as bpm puts them together: name and text."""
    source = ROOT / "runtime/src"
    folder = source / "engine/device/training"
    shared = (folder / "training.cuh").read_text()
    for world in sorted((source / "task").rglob("*.cu")):
        text = world.read_text()
        # Worlds whose inputs are known before the network has run show them; others answer actions.
        kind = "known.cu" if "world_shown(" in text else "episode.cu"
        yield f"episodes of {world.stem}", shared + text + (folder / kind).read_text()
    yield "descent", shared + (folder / "descent.cu").read_text()
    yield "moves", (source / "engine/device/moves.cu").read_text()


def training_flags():
    """The flags that bpm compiles them with."""
    text = (ROOT / "compiler/src/back/cuda/mod.rs").read_text()
    return re.findall(r'"(--[^"]+)"', re.search(r"pub const FLAGS.*?;\n", text, re.S).group(0))


def judge_training(nvrtc, architectures):
    """Compiles all that no spec is part of; gives kernels and failures."""
    failed, kernels = 0, 0
    for name, text in training():
        for arch in architectures:
            count, registers, wrong = judge(nvrtc, text, name.replace(" ", "_"), training_flags(), arch)
            print(f"{name} {arch}: {count} kernels, at most {registers} registers", flush=True)
            for what in wrong:
                print(f"  FAILED: {what}", flush=True)
            failed += bool(wrong)
            kernels += count
    return kernels, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bpmc")
    parser.add_argument("specs", nargs="*")
    parser.add_argument("--arch", action="append")
    parser.add_argument("--size", action="append", type=int)
    parser.add_argument("--alternate", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tier", action="append")
    parser.add_argument("--training", action="store_true", help="only the kernels of training, of which no spec is part")
    arguments = parser.parse_intermixed_args()
    nvrtc = library()
    architectures = arguments.arch or ["sm_80", "sm_90a"]
    # Those of training belong to all specs together.
    whole = arguments.training or not arguments.specs
    kernels, failed = judge_training(nvrtc, architectures) if whole else (0, 0)
    if arguments.training:
        sys.exit(1 if failed or kernels == 0 else 0)
    files = arguments.specs or sorted(str(p) for p in (ROOT / "specs").rglob("*.bpm"))
    turns = itertools.cycle([a] for a in architectures) if arguments.alternate else itertools.repeat(architectures)
    sized = [
        (path, name, {axis: size + k % 3 for k, axis in enumerate(axes)}, 32)
        for path, name, axes in specs(arguments.bpmc, files)
        for size in arguments.size or (100,)
    ]
    if not arguments.specs:
        sized += [(str(ROOT / "specs" / path), *rest) for path, *rest in LARGE]
    jobs = [
        (*subject, arch, tier)
        for subject in sized
        for arch in next(turns)
        for tier in arguments.tier or ("1",)
    ]

    def work(job):
        path, name, sizes, batch, arch, tier = job
        text, flags = emit(arguments.bpmc, path, name, sizes, batch, tier, arch)
        return judge(nvrtc, text, name, flags, arch)

    # NVRTC compiles on several threads at once.
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for (_, name, sizes, _, arch, tier), (count, registers, wrong) in zip(jobs, pool.map(work, jobs)):
            size = max(sizes.values(), default=0)
            print(f"{name} {size} {arch} tier {tier}: {count} kernels, at most {registers} registers", flush=True)
            for what in wrong:
                print(f"  FAILED: {what}", flush=True)
            failed += bool(wrong)
            kernels += count
    if kernels == 0:
        sys.exit("no kernel was compiled")
    print(f"{kernels} kernels compiled; {failed} sources failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
