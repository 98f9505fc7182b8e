"""What PyTorch says of every spec: values, and gradients by its own differentiation, in double precision.

    tests/torch/second_opinion.py BPMC --check | --write [FILE.bpm ...]

BPMC is the binary. Each spec of specs/ and of this folder is emitted by `bpmc compile --target torch`, imported, and
run over a short sequence. --write puts the numbers into fixtures/, which the test torch.rs compares with the
interpreter and with machine code; --check compares them with those that are there. Parameters, inputs, initial
states and cotangents are not stored: they are drawn here and there from the same generator, by name.
"""

import argparse
import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# Resolves symbols of GPU libraries only when called, so that empty ones will do.
sys.setdlopenflags(os.RTLD_LAZY)
import torch  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests/torch/fixtures"
STEPS, ROWS = 5, 2
PENALTY_BAR = 0.7
MASK = (1 << 64) - 1
# A fixture has twelve digits.
TOLERANCE = 1e-10


def hashed(text):
    """FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def drawn(name, shape):
    """Numbers in [-1, 1) that depend on a name alone (SplitMix64)."""
    state = (hashed(name) * 0x9E3779B97F4A7C15 + 0x123456789ABCDEF1) & MASK
    numbers = []
    for _ in range(torch.Size(shape).numel()):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(((z ^ (z >> 31)) >> 11) / (1 << 52) - 1.0)
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


def leaf(tensor):
    """A tensor whose gradient is wanted."""
    return tensor.detach().clone().requires_grad_()


def emitted(bpmc, file, spec, folder):
    """The class that a spec is emitted as."""
    command = [bpmc, "compile", file, "--spec", spec, "--target", "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{file}: {spec}: {done.stderr}")
    path = pathlib.Path(folder) / f"{spec}.py"
    path.write_text(done.stdout)
    found = importlib.util.spec_from_file_location(spec, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, torch.nn.Module)]
    return module, [c for c in classes if hasattr(c, "initial_state")][0]


def made(network):
    """The network with small sizes, which are functions of the axes' names."""
    sizes = [name for name in inspect.signature(network).parameters if name not in ("device", "dtype")]
    return network(**{name: 3 + hashed(name) % 3 for name in sizes}, dtype=torch.float64)


def set_parameters(model):
    """Draws all parameters, ranged ones as raw numbers, fixed ones too."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            scale = 1.2 / tensor.shape[-1] ** 0.5 if tensor.dim() == 2 else 0.8
            tensor.copy_(scale * drawn(f"param {name}", tensor.shape))


def inputs_of(model):
    """All inputs of a sequence. Some numbers are zero, as masks are."""
    found = {}
    for name, shape in model.input_shapes().items():
        draw = getattr(model, f"draw_{name}", None)
        is_optional = inspect.signature(model.step).parameters[name].default is None
        locked = draw is not None and "once" in draw.__doc__
        x = drawn(f"in {name}", (ROWS, *shape) if locked else (STEPS, ROWS, *shape))
        if is_optional and draw is None:
            x = (x > 0.5).double()
        else:
            x = torch.where(x.abs() < 0.25, 0.0, x)
        found[name] = leaf(x)
    return found


def start_of(model):
    """The initial states, and what was added to them; none where a reset returns to them."""
    torch.manual_seed(0)
    start = model.initial_state(ROWS)
    torch.manual_seed(1)
    other = model.initial_state(ROWS)
    scale = 0.0 if "reset" in vars(type(model)) else 0.4
    added = [leaf(scale * drawn(f"init {n}", x.shape)) for n, x in zip(start._fields, start)]
    state = type(start)(*(x + a for x, a in zip(start, added)))
    random = [not torch.equal(x, y) for x, y in zip(start, other)]
    return state, added, random


def opinion(model):
    """Everything that is compared, by name."""
    set_parameters(model)
    inputs, (state, added, random) = inputs_of(model), start_of(model)
    found = {f"init.{n}": x for n, x, r in zip(state._fields, state, random) if r}
    arguments = dict(inputs)
    if list(inspect.signature(model.forward).parameters)[0] == "steps":
        arguments["steps"] = STEPS
    outputs, last = model(**arguments, state=state)
    loss = torch.zeros((), dtype=torch.float64)
    for name, x in outputs._asdict().items():
        is_penalty = name == "penalty"
        bar = PENALTY_BAR if is_penalty else drawn(f"bar {name}", x.shape)
        loss = loss + (x * bar).sum()
        found["penalty" if is_penalty else f"out.{name}"] = x
    for name, x in last._asdict().items():
        loss = loss + (x * drawn(f"last {name}", x.shape)).sum()
        found[f"state.{name}"] = x
    if loss.requires_grad:
        loss.backward()
    gradient = lambda x: torch.zeros_like(x) if x.grad is None else x.grad
    found |= {f"grad.{n}": gradient(x) for n, x in model.named_parameters() if x.requires_grad}
    found |= {f"grad.in.{n}": gradient(x) for n, x in inputs.items() if not hasattr(model, f"draw_{n}")}
    found |= {f"grad.init.{n}": gradient(x) for n, x in zip(state._fields, added)}
    return found


def check_files(module, network, model):
    """Values in the units of the spec load, and a state dict loads as it is."""
    other = made(network)
    other.load_state_dict(model.state_dict())
    values = {}
    for name, tensor in model.state_dict().items():
        place = name.removesuffix(".raw")
        # A word that Python needs for itself has an underscore here, and none in the spec.
        values[place.removesuffix("_")] = model.get_submodule(place)() if place != name else tensor
    other = made(network)
    other.load_state_dict(values)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        if not torch.allclose(a, b, rtol=1e-9, atol=1e-9):
            sys.exit(f"{network.__name__}: {name} does not come back from its value")


def text_of(found):
    """One line per tensor: name, shape, numbers."""
    lines = []
    for name, x in found.items():
        if not torch.isfinite(x).all():
            sys.exit(f"{name} is not finite")
        shape = ",".join(map(str, x.shape)) or "-"
        numbers = " ".join(f"{v:.11e}".replace("e+00", "") for v in x.detach().flatten().tolist())
        lines.append(f"{name} {shape} {numbers}\n")
    return "".join(lines)


def difference(found, expected):
    """The first tensor that differs, if one does."""
    parse = lambda text: {l.split()[0]: (l.split()[1], [float(v) for v in l.split()[2:]]) for l in text.splitlines()}
    a, b = parse(found), parse(expected)
    if list(a) != list(b):
        return f"tensors are {', '.join(a)}; the fixture has {', '.join(b)}"
    for name, (shape, numbers) in a.items():
        if shape != b[name][0]:
            return f"{name} has shape {shape}; the fixture has {b[name][0]}"
        norm = max(sum(x * x for x in b[name][1]) ** 0.5, 0.1)
        off = sum((x - y) ** 2 for x, y in zip(numbers, b[name][1])) ** 0.5
        if not off <= TOLERANCE * norm:
            return f"{name} is off by {off / norm:.1e}"
    return None


def main():
    """Writes or compares; one line per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bpmc")
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="specs [default: all]")
    parser.add_argument("--write", action="store_true", help="write the fixtures")
    parser.add_argument("--check", action="store_true", help="compare with the fixtures")
    args = parser.parse_intermixed_args()
    if args.write == args.check:
        parser.error("say --write or --check")
    torch.set_num_threads(1)
    folders = {ROOT / "specs": FIXTURES, ROOT / "tests/torch": FIXTURES / "language"}
    wrong = 0
    count = 0
    for folder, place in folders.items():
        for file in sorted(folder.rglob("*.bpm")):
            if args.files and file not in [f.resolve() for f in args.files]:
                continue
            text = ""
            with tempfile.TemporaryDirectory() as temporary:
                for spec in re.findall(r"^spec (\w+)", file.read_text(), re.M):
                    module, network = emitted(args.bpmc, file, spec, temporary)
                    model = made(network)
                    text += f"spec {spec}\n" + text_of(opinion(model))
                    check_files(module, network, model)
                    count += 1
            fixture = place / file.relative_to(folder).with_suffix(".txt")
            if args.write:
                fixture.parent.mkdir(parents=True, exist_ok=True)
                fixture.write_text(text)
                continue
            if not fixture.exists():
                print(f"{file.relative_to(ROOT)}: no fixture")
                wrong += 1
                continue
            sections = lambda t: dict(s.split("\n", 1) for s in re.split(r"^spec ", t, flags=re.M)[1:])
            ours, theirs = sections(text), sections(fixture.read_text())
            for spec in ours.keys() | theirs.keys():
                why = difference(ours.get(spec, ""), theirs.get(spec, ""))
                if why is not None:
                    print(f"{file.relative_to(ROOT)}: {spec}: {why}")
                    wrong += 1
    print(f"{count} specs, {wrong} differ" if args.check else f"{count} specs written")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
