"""Runs an emitted module for `bpm bench --against torch`.

    driver.py FOLDER THREADS

FOLDER holds model.py, and parameters.safetensors, its state dict. Every line of standard input is a wish as JSON,
every line of standard output its answer; `error` says why there is none.

    {"do": "check", "how": "eager"}     runs check.safetensors, writes found.safetensors
    {"do": "time", "how": "compiled", "pass": "both", "batch": 30, "steps": 200, "input_gradients": false}
"""

import inspect
import json
import os
import pathlib
import struct
import sys
import time
import traceback

ANSWERS = sys.stdout
# What libraries print is no answer.
sys.stdout = sys.stderr


def answer(**fields):
    """One line for bpm."""
    print(json.dumps(fields), file=ANSWERS, flush=True)


try:
    # Symbols of libraries for GPUs are resolved when they are called.
    sys.setdlopenflags(os.RTLD_LAZY)
    import torch
except Exception as error:
    answer(error=f"{type(error).__name__}: {error}", missing="torch")
    sys.exit(0)


def read(path):
    """The tensors of a safetensors file of 32-bit numbers."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, about in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        first, end = (8 + length + at for at in about["data_offsets"])
        empty = torch.empty(0, dtype=torch.float32)
        numbers = torch.frombuffer(data[first:end], dtype=torch.float32) if first < end else empty
        found[name] = numbers.reshape(about["shape"]).clone()
    return found


def write(path, tensors):
    """A safetensors file of 32-bit numbers."""
    header, parts, at = {}, [], 0
    for name, tensor in tensors.items():
        numbers = tensor.detach().to(torch.float32).contiguous().flatten().tolist()
        parts.append(struct.pack(f"<{len(numbers)}f", *numbers))
        end = at + len(parts[-1])
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


class Driver:
    """The network, eager and compiled."""

    def __init__(self, folder):
        self.folder = folder
        sys.path.insert(0, str(folder))
        import model

        classes = [c for c in vars(model).values() if inspect.isclass(c) and issubclass(c, torch.nn.Module)]
        self.network = next(c for c in classes if hasattr(c, "initial_state"))
        self.made = {}

    def model(self, how):
        """The network in evaluation; compiled, its step is."""
        if how not in self.made:
            model = self.network()
            model.load_state_dict(read(self.folder / "parameters.safetensors"))
            model.eval()
            if how == "compiled":
                model.step = torch.compile(model.step, dynamic=False)
            self.made[how] = model
        return self.made[how]

    def forward(self, model, inputs, state):
        """Outputs of a sequence."""
        if list(inspect.signature(model.forward).parameters)[0] == "steps":
            return model(state=state, **inputs)[0]
        return model(**inputs, state=state)[0]

    def check(self, wish):
        """Outputs, and gradients of parameters, for given numbers."""
        model = self.model(wish["how"])
        given = read(self.folder / "check.safetensors")
        part = lambda head: {n.removeprefix(head): x for n, x in given.items() if n.startswith(head)}
        inputs, starts, bars = part("in."), part("init."), part("bar.")
        state = model.initial_state(wish["batch"])._replace(**starts)
        if not inputs:
            inputs["steps"] = wish["steps"]
        model.zero_grad(set_to_none=True)
        outputs = self.forward(model, inputs, state)
        loss = sum((getattr(outputs, n) * bar).sum() for n, bar in bars.items())
        if torch.is_tensor(loss) and loss.requires_grad:
            loss.backward()
        found = {f"out.{n}": getattr(outputs, n) for n in bars}
        for name, x in model.named_parameters():
            found[f"grad.{name}"] = torch.zeros_like(x) if x.grad is None else x.grad
        write(self.folder / "found.safetensors", found)
        return {"done": True}

    def time(self, wish):
        """Milliseconds of one pass; the first of a kind is run once more before."""
        model = self.model(wish["how"])
        torch.manual_seed(0)
        front = (wish["steps"], wish["batch"])
        optional = {n for n, p in inspect.signature(model.step).parameters.items() if p.default is None}
        given = {n: s for n, s in model.input_shapes().items() if n not in optional}
        draw = lambda shape: torch.rand(*front, *shape) * 2 - 1
        inputs = {n: draw(s).requires_grad_(wish["input_gradients"]) for n, s in given.items()}
        if not inputs:
            inputs["steps"] = wish["steps"]
        key = (wish["how"], wish["pass"])
        if key not in self.made:
            self.made[key] = True
            self.once(model, inputs, wish)
        return {"ms": self.once(model, inputs, wish)}

    def once(self, model, inputs, wish):
        """One pass, timed."""
        model.zero_grad(set_to_none=True)
        if wish["pass"] == "forward":
            with torch.no_grad():
                started = time.perf_counter()
                self.forward(model, inputs, model.initial_state(wish["batch"]))
                return 1e3 * (time.perf_counter() - started)
        with torch.no_grad():
            outputs = self.forward(model, inputs, model.initial_state(wish["batch"]))
        bars = [torch.rand_like(x) * 2 - 1 for x in outputs]
        started = time.perf_counter()
        outputs = self.forward(model, inputs, model.initial_state(wish["batch"]))
        loss = sum((x * bar).sum() for x, bar in zip(outputs, bars))
        if loss.requires_grad:
            loss.backward()
        return 1e3 * (time.perf_counter() - started)


def main():
    """Answers wishes until there are no more."""
    torch.set_num_threads(int(sys.argv[2]))
    driver = Driver(pathlib.Path(sys.argv[1]))
    answer(torch=torch.__version__, python=sys.version.split()[0])
    for line in sys.stdin:
        wish = json.loads(line)
        try:
            answer(**(driver.check(wish) if wish["do"] == "check" else driver.time(wish)))
        except Exception as error:
            traceback.print_exc()
            lines = [l for l in str(error).splitlines() if l.strip()]
            answer(error=f"{type(error).__name__}: {lines[0] if lines else ''}")


if __name__ == "__main__":
    main()
