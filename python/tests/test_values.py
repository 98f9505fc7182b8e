"""Outputs and gradients: against finite differences, against `bpm run`, whole and step by step."""

import json
import os
import pickle
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

import bpm
import numpy as np
from support import B, CELL, N, RESET, ROOT, T, drawn, parameters, relative_error

AXES = {"N": N}


def exact():
    return bpm.load(CELL, axes=AXES, backend="interp")


class Gradients(unittest.TestCase):
    def loss(self, model, params, inputs, states, reset, bars, ends):
        outputs, state = model(params, inputs, states, reset)
        both = [(outputs[k], bars[k]) for k in bars] + [(state[k], ends[k]) for k in ends]
        return sum(float(np.sum(x * bar)) for x, bar in both)

    def check(self, reset, carried):
        model = exact()
        params = parameters(model)
        inputs, states, bars, ends = drawn(model)
        state = states if carried else None
        tape = model.forward(params, inputs, state, reset)
        found = tape.backward(bars, ends)
        self.assertEqual(set(found.params), {p for p, about in model.parameters.items() if about.learned})
        self.assertEqual(set(found.inputs), {"u"})

        def slope(array, place, h=1e-5):
            old = array[place]
            sides = []
            for x in (old + h, old - h):
                array[place] = x
                sides.append(self.loss(model, params, inputs, state, reset, bars, ends))
            array[place] = old
            return (sides[0] - sides[1]) / (2 * h)

        arrays = [(f"params.{k}", params[k], g) for k, g in found.params.items()]
        arrays += [(f"inputs.{k}", inputs[k], g) for k, g in found.inputs.items()]
        arrays += [(f"state.{k}", states[k], g) for k, g in found.state.items()] if carried else []
        for name, array, gradient in arrays:
            self.assertEqual(gradient.shape, array.shape, name)
            places = [np.unravel_index(k, array.shape) for k in range(0, array.size, max(1, array.size // 7))]
            expected = [slope(array, p) for p in places]
            error = relative_error([gradient[p] for p in places], expected)
            self.assertLess(error, 1e-6, f"{name}: {error}")
            # With carried states and no reset nobody starts at a learned value.
            if not (carried and reset is None and name == "params.y.init"):
                self.assertGreater(np.linalg.norm(gradient), 1e-4, f"{name} is vacuous")

    def test_finite_differences(self):
        for reset in (None, RESET):
            for carried in (False, True):
                with self.subTest(reset=reset is not None, carried=carried):
                    self.check(reset, carried)

    def test_back_ends_agree(self):
        expected = self.everything(exact())
        for backend in ("auto", "cranelift"):
            found = self.everything(bpm.load(CELL, axes=AXES, backend=backend))
            for name, array in expected.items():
                self.assertLess(relative_error(found[name], array), 2e-5, f"{backend}: {name}")

    def everything(self, model, reset=RESET):
        params = {k: np.asarray(x, model.dtype) for k, x in parameters(exact()).items()}
        inputs, states, bars, ends = drawn(model)
        tape = model.forward(params, inputs, states, reset)
        found = tape.backward(bars, ends)
        groups = {"out": tape.outputs, "end": tape.state, **found._asdict()}
        return {f"{group}.{name}": x for group, named in groups.items() for name, x in named.items()}

    def test_threads_do_not_change_a_bit(self):
        model = {n: bpm.load(CELL, axes={"N": 96}, threads=n) for n in (1, 3)}
        params = model[1].init(0)
        inputs, states, bars, ends = drawn(model[1], batch=7, steps=40)
        one, three = (m.forward(params, inputs, states) for m in model.values())
        for first, second in zip(one.backward(bars, ends), three.backward(bars, ends)):
            for name in first:
                np.testing.assert_array_equal(first[name], second[name], name)

    def test_a_tape_runs_backward_again_and_outlives_its_model(self):
        model = bpm.load(CELL, axes=AXES)
        inputs, states, bars, ends = drawn(model)
        params = model.init(3)
        tape = model.forward(params, inputs, states)
        del model
        first = tape.backward(bars, ends)
        nothing = tape.backward({})
        self.assertTrue(all(not g.any() for g in nothing.params.values()))
        params["W"][:] = np.nan
        again = tape.backward(bars, ends)
        for name, gradient in first.params.items():
            np.testing.assert_array_equal(gradient, again.params[name], name)


class Runs(unittest.TestCase):
    def test_steps_are_the_sequence(self):
        model = bpm.load(CELL, axes=AXES)
        params = parameters(model)
        inputs, states, _, _ = drawn(model)
        outputs, end = model(params, inputs, states, RESET)
        for given in (params, model.bind(params)):
            state, penalty = states, 0.0
            for t in range(T):
                step = {k: x[t] for k, x in inputs.items()}
                out, state = model(given, step, state, RESET[t])
                self.assertEqual(out["a"].shape, (B, 2))
                for name in ("a", "b"):
                    np.testing.assert_array_equal(out[name], outputs[name][t], name)
                penalty += out["penalty"] / T
            for name in end:
                np.testing.assert_array_equal(state[name], end[name], name)
            self.assertAlmostEqual(float(penalty), float(outputs["penalty"]), 6)

    def test_a_single_step_runs_backward(self):
        model = exact()
        params = parameters(model)
        inputs, states, bars, ends = drawn(model, steps=1)
        step = {k: x[0] for k, x in inputs.items()}
        one = model.forward(params, step, states).backward({"a": bars["a"][0]}, ends)
        sequence = model.forward(params, inputs, states).backward({"a": bars["a"]}, ends)
        np.testing.assert_array_equal(one.inputs["u"], sequence.inputs["u"][0])
        np.testing.assert_array_equal(one.params["W"], sequence.params["W"])

    def test_a_state_that_is_left_out_starts_at_its_own_value(self):
        model = exact()
        params = parameters(model)
        inputs, states, _, _ = drawn(model)
        whole, _ = model(params, inputs, {**model.initial_state(B, params), "H": states["H"]})
        part, _ = model(params, inputs, {"H": states["H"]})
        np.testing.assert_array_equal(whole["a"], part["a"])

    def test_pickles_and_copies(self):
        model = bpm.load(CELL, axes=AXES)
        other = pickle.loads(pickle.dumps(model))
        params, (inputs, *_) = model.init(0), drawn(model)
        np.testing.assert_array_equal(model(params, inputs)[0]["a"], other(params, inputs)[0]["a"])
        self.assertEqual((other.axes, other.backend), (model.axes, model.backend))

    def test_what_a_model_says_of_itself(self):
        model = bpm.load(CELL, axes=AXES)
        self.assertEqual(model.axes, {"I": 3, "N": N, "A": 2})
        self.assertEqual(model.parameters["Wx"].shape, (N, 3))
        self.assertEqual(model.parameters["eta"].range, (0.0, 1.0))
        self.assertEqual(model.parameters["tau"].gradscale, 0.5)
        self.assertFalse(model.parameters["g"].learned)
        self.assertEqual([i.role for i in model.inputs.values()], ["signal", "target"])
        self.assertEqual(model.outputs["b"].shape, ())
        self.assertTrue(model.states["y"].learned and not model.states["H"].learned)
        self.assertEqual(np.dtype("float32"), model.dtype)

    def test_random_starts_and_noise_are_drawn_by_seed(self):
        spec = (ROOT / "specs/zoo/node_perturbation.bpm").read_text()
        model = bpm.load(spec, axes={"I": 3, "O": 2})
        first, again, other = (model.noise(T, B, seed=s) for s in (1, 1, 2))
        self.assertTrue(first)
        for name, x in first.items():
            self.assertEqual(x.shape, (T, B, *model.inputs[name].shape))
            np.testing.assert_array_equal(x, again[name])
            self.assertFalse(np.array_equal(x, other[name]))


class Constraints(unittest.TestCase):
    def test_raw_numbers(self):
        model = exact()
        params = parameters(model)
        raw = model.to_raw(params)
        self.assertAlmostEqual(float(raw["eta"]), np.log(0.3 / 0.7), 6)
        back = model.from_raw(raw)
        for name in params:
            np.testing.assert_allclose(back[name], params[name], rtol=1e-12, err_msg=name)
        ones = {"eta": np.ones(()), "tau": np.ones(()), "W": np.ones((N, N))}
        chained = model.chain(raw, ones)
        h = 1e-6
        for name in ("eta", "tau"):
            sides = [model.from_raw({**raw, name: np.asarray(raw[name] + d)})[name] for d in (h, -h)]
            slope = (sides[0] - sides[1]) / (2 * h) * model.parameters[name].gradscale
            self.assertAlmostEqual(float(chained[name]), float(slope), 6, name)
        np.testing.assert_array_equal(chained["W"], ones["W"])
        with self.assertRaisesRegex(ValueError, "parameter `eta` cannot be 1: it must lie between 0 and 1"):
            model.to_raw({**params, "eta": np.ones(())})


def write_safetensors(path, tensors):
    """The format is a length, a header in JSON, and bytes."""
    header, data = {}, b""
    for name, x in tensors.items():
        kind = {"float32": "F32", "float64": "F64"}[x.dtype.name]
        header[name] = {"dtype": kind, "shape": x.shape, "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "F64": np.float64}
    tensors = {}
    for name, about in header.items():
        start, end = (8 + size + x for x in about["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], kinds[about["dtype"]]).reshape(about["shape"])
    return tensors


@unittest.skipUnless(os.environ.get("BPM_PROGRAM"), "BPM_PROGRAM does not name the program bpm")
class Program(unittest.TestCase):
    def test_bpm_run_says_the_same(self):
        for backend, tolerance in (("interp", 1e-12), ("auto", 0.0)):
            model = bpm.load(CELL, axes=AXES, backend=backend)
            params = parameters(model)
            inputs, _, bars, _ = drawn(model)
            bars = {k: x for k, x in bars.items() if k != "penalty"}
            tape = model.forward(params, inputs)
            found = tape.backward(bars)
            expected = self.run_program(model, params, inputs, bars)
            named = {f"out.{k}": x for k, x in tape.outputs.items() if k != "penalty"}
            named |= {f"state.{k}": x for k, x in tape.state.items()}
            named |= {f"grad.{k}": x for k, x in found.params.items()}
            named |= {f"grad.in.{k}": x for k, x in found.inputs.items()}
            named |= {f"grad.init.{k}": x for k, x in found.state.items()}
            self.assertEqual(set(named), set(expected))
            for name, x in named.items():
                exactly = tolerance == 0.0 and name.startswith(("out.", "state."))
                # Sums of gradients over rows are in another order.
                limit = 0.0 if exactly else max(tolerance, 1e-12 if backend == "interp" else 1e-6)
                self.assertLessEqual(relative_error(x, expected[name]), limit, f"{backend}: {name}")

    def run_program(self, model, params, inputs, bars):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "cell.bpm").write_text(CELL)
            for name, tensors in (("params", params), ("inputs", inputs), ("bars", bars)):
                write_safetensors(folder / name, tensors)
            command = [os.environ["BPM_PROGRAM"], "-q", "run", "cell.bpm", "--params", "params", "--inputs", "inputs"]
            command += ["--cotangents", "bars", "--out", "out", "--axis", f"N={N}", "--backend", model.backend]
            command += ["--dtype", "f64" if model.backend == "interp" else "f32"]
            subprocess.run(command, check=True, cwd=folder)
            return read_safetensors(folder / "out")


if __name__ == "__main__":
    unittest.main()
