"""Models on a device, with NumPy alone: the same numbers as on the processor, arrays that are lent and given away, and
what is said of mistakes. The device is the emulated one, unless `BPM_TEST_DEVICE` is `cuda`.
"""

import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import unittest
import weakref

import bpm
import numpy as np
from bpm import _native
from support import B, CELL, N, RESET, T, drawn, emulated, host, numbers, parameters, placed, relative_error

AXES = {"N": N}

missing = emulated()


@unittest.skipIf(missing, missing)
class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cpu = bpm.load(CELL, axes=AXES)
        cls.model = bpm.load(CELL, axes=AXES, device="cuda")
        cls.host_params = parameters(cls.cpu)
        cls.host_inputs, cls.host_states, cls.host_bars, cls.host_ends = drawn(cls.cpu)
        cls.params, cls.inputs, cls.states, cls.ends = (
            placed(x) for x in (cls.host_params, cls.host_inputs, cls.host_states, cls.host_ends)
        )
        cls.bars = {**placed({k: x for k, x in cls.host_bars.items() if k != "penalty"}), "penalty": 1.7}

    def refused(self, words, call, *arguments, error=ValueError, **named):
        with self.assertRaises(error) as caught:
            call(*arguments, **named)
        self.assertIn(words, str(caught.exception))
        return caught.exception

    def close(self, what, found, expected, tolerance=2e-5):
        self.assertEqual(set(found), set(expected), what)
        for name, x in expected.items():
            x, y = np.asarray(x), host(found[name])
            if np.linalg.norm(x) == 0:
                self.assertFalse(y.any(), f"{what}: {name}")
            else:
                self.assertLess(relative_error(y, x), tolerance, f"{what}: {name}")


class Numbers(Base):
    def everything(self, model, on_device, reset, carried):
        """Outputs, states and gradients of a batch."""
        if on_device:
            params, inputs, states, bars, ends = self.params, self.inputs, self.states, self.bars, self.ends
        else:
            params, inputs, states = self.host_params, self.host_inputs, self.host_states
            bars, ends = self.host_bars, self.host_ends
        tape = model.forward(params, inputs, states if carried else None, reset)
        gradients = tape.backward(bars, ends)
        return {"outputs": tape.outputs, "state": tape.state, **gradients._asdict()}

    def test_both_tiers_agree_with_the_processor(self):
        for tier in ("1", "2"):
            model = bpm.load(CELL, axes=AXES, device="cuda", tier=tier)
            self.assertTrue(model.route.startswith(f"tier {tier}"), model.route)
            for reset in (None, RESET):
                for carried in (False, True):
                    what = f"tier {tier}, reset {reset is not None}, carried {carried}"
                    expected = self.everything(self.cpu, False, reset, carried)
                    found = self.everything(model, True, reset, carried)
                    for group, arrays in expected.items():
                        self.close(f"{what}: {group}", found[group], arrays)
                    self.assertGreater(np.linalg.norm(expected["params"]["alpha"]), 1e-4)
                    # The second call is recorded and the third one replayed.
                    for _ in range(2):
                        again = self.everything(model, True, reset, carried)
                        for group, arrays in found.items():
                            for name, x in arrays.items():
                                np.testing.assert_array_equal(host(again[group][name]), host(x), f"{what}: {name}")

    def test_without_a_tape_and_with_bound_parameters(self):
        expected, state = self.model.forward(self.params, self.inputs).outputs, None
        bound = self.model.bind(self.params)
        found, state = self.model(bound, self.inputs)
        for name, x in expected.items():
            np.testing.assert_array_equal(host(found[name]), host(x))
        self.assertEqual(state["H"].shape, (B, N, N))

    def test_step_by_step(self):
        """Single steps, through which states are carried, with resets, are one sequence."""
        whole, last = self.model(self.params, self.inputs, None, RESET)
        bound, state = self.model.bind(self.params), None
        for t in range(T):
            step = placed({k: x[t] for k, x in self.host_inputs.items()})
            outputs, state = self.model(bound, step, state, RESET[t])
            self.assertEqual(outputs["a"].shape, (B, 2))
            self.assertLess(relative_error(host(outputs["a"]), host(whole["a"])[t]), 1e-6)
        self.close("last states", state, {k: host(x) for k, x in last.items()}, 1e-6)

    def test_windows_join(self):
        """The cotangents of a window's start are those of the end of the window before."""
        whole = self.model.forward(self.params, self.inputs)
        expected = whole.backward({"a": self.bars["a"]})
        cut = lambda named, part: placed({k: np.ascontiguousarray(host(x)[part]) for k, x in named.items()})
        first, second = slice(0, 2), slice(2, T)
        one = self.model.forward(self.params, cut(self.inputs, first))
        two = self.model.forward(self.params, cut(self.inputs, second), one.state)
        late = two.backward(cut({"a": self.bars["a"]}, second))
        early = one.backward(cut({"a": self.bars["a"]}, first), late.state)
        both = {k: host(x) + host(late.params[k]) for k, x in early.params.items()}
        self.close("gradients", both, {k: host(x) for k, x in expected.params.items()}, 1e-5)

    def test_what_is_drawn_is_the_same(self):
        for found, expected in [
            (self.model.init(3), self.cpu.init(3)),
            (self.model.initial_state(4, self.params, 2), self.cpu.initial_state(4, self.host_params, 2)),
            (self.model.to_raw(self.params), self.cpu.to_raw(self.host_params)),
        ]:
            for name, x in expected.items():
                self.assertIsInstance(found[name], bpm.DeviceArray)
                np.testing.assert_array_equal(host(found[name]), x)
        raw, host_raw = self.model.to_raw(self.params), self.cpu.to_raw(self.host_params)
        self.close("from_raw", self.model.from_raw(raw), self.cpu.from_raw(host_raw), 1e-7)
        chained = self.model.chain(raw, self.params)
        self.close("chain", chained, self.cpu.chain(host_raw, self.host_params), 1e-7)

    def test_what_depends_on_parameters_alone(self):
        text = """spec gains {
          axis N = 3
          in u[N]
          learn a[N] ~ uniform(-1, 1)
          gain = exp(a) / sum(exp(a))
          out y[N] = gain * u
        }"""
        cpu, model = bpm.load(text), bpm.load(text, device="cuda")
        u, params = numbers(1, (4, 2, 3), "f4"), cpu.init(1)
        tape, other = cpu.forward(params, {"u": u}), model.forward(placed(params), placed({"u": u}))
        self.close("y", other.outputs, tape.outputs, 1e-6)
        expected = tape.backward({"y": u}).params
        self.close("gradient", other.backward(placed({"y": u})).params, expected, 1e-6)
        self.assertGreater(np.linalg.norm(expected["a"]), 1e-3)


class Arrays(Base):
    def test_there_and_back(self):
        for x in (numbers(1, (2, 3), "f4"), np.arange(6), np.array([True, False]), np.float64(2.5), np.zeros(0, "f4")):
            there = bpm.to_device(x)
            self.assertEqual((there.shape, there.dtype), (np.shape(x), np.asarray(x).dtype))
            np.testing.assert_array_equal(there.numpy(), x)
        self.refused("cannot lie on a device", bpm.to_device, np.array(["a"]))
        self.refused("is a str", bpm.to_device, "abc")
        self.refused(".numpy() copies", np.asarray, there, error=TypeError)
        shown = repr(bpm.to_device(numbers(1, (2, 3), "f4")))
        self.assertIn(f"DeviceArray [2, 3] float32 on {self.model.device}", shown)

    def test_capsules(self):
        there = bpm.to_device(numbers(1, (2, 3), "f4"))
        for versions in (None, (0, 8), (1, 0), (1, 3)):
            name = "dltensor_versioned" if versions and versions[0] else "dltensor"
            self.assertIn(f'"{name}"', repr(there.__dlpack__(max_version=versions)))
        self.refused("is on", there.__dlpack__, dl_device=(9, 0), error=BufferError)
        self.refused("no copy", there.__dlpack__, copy=True, error=BufferError)
        if self.model.device != "emulated":
            return
        view = np.from_dlpack(there)
        np.testing.assert_array_equal(view, there.numpy())
        if view.flags.writeable:
            view[0, 0] = 7
            self.assertEqual(there.numpy()[0, 0], 7)
        del there
        gc.collect()
        self.assertEqual(view.shape, (2, 3))
        self.assertTrue(np.isfinite(view).all())

    def test_results_outlive_everything(self):
        model = pickle.loads(pickle.dumps(self.model))
        self.assertEqual(model.device, self.model.device)
        tape = model.forward(self.params, self.inputs, self.states)
        gradients = tape.backward(self.bars, self.ends)
        outputs = tape.outputs
        expected = {k: host(x) for k, x in {**outputs, **gradients.params}.items()}
        del tape, model
        gc.collect()
        self.model(self.params, self.inputs)
        for name, x in {**outputs, **gradients.params}.items():
            np.testing.assert_array_equal(host(x), expected[name])

    def test_a_tape_does_not_depend_on_arrays(self):
        expected = self.model.forward(self.params, self.inputs).backward(self.bars).params["W"].numpy()
        params, inputs = placed(self.host_params), placed(self.host_inputs)
        tape = self.model.forward(params, inputs)
        tape.outputs = tape.state = None
        del params, inputs
        gc.collect()
        placed({"x": np.full((T, B, 64), np.nan, "f4")})
        # Another call, with other parameters, uses what memory there is.
        self.model.forward(placed(self.cpu.init(9)), self.inputs).backward(self.bars)
        for _ in range(2):
            np.testing.assert_array_equal(tape.backward(self.bars).params["W"].numpy(), expected)

    def test_whoever_speaks_dlpack(self):
        if self.model.device != "emulated":
            self.skipTest("arrays of NumPy are on the processor")

        class Old:
            """Of a time when DLPack had no versions."""

            def __init__(self, array):
                self.array = array

            def __dlpack__(self, stream=None):
                return self.array.__dlpack__(stream=stream)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        expected = host(self.model(self.params, self.inputs)[0]["a"])
        frozen = {k: x.copy() for k, x in self.host_params.items()}
        for x in frozen.values():
            x.flags.writeable = False
        found, _ = self.model(frozen, {k: Old(x) for k, x in self.host_inputs.items()})
        np.testing.assert_array_equal(host(found["a"]), expected)

    def test_models_on_several_devices(self):
        model = bpm.load(CELL, axes=AXES)
        other = model.on("cuda")
        self.assertEqual(other.device, self.model.device)
        self.assertIs(other, model.on("cuda:0"))
        self.assertIs(other.on("cpu"), model)
        self.assertIs(model.on("cpu"), model)
        gone = weakref.ref(other), weakref.ref(model)
        del model, other
        self.assertEqual([x() for x in gone], [None, None], "models do not hold each other")
        self.refused("back end `interp` runs on the processor", bpm.load(CELL, axes=AXES, backend="interp").on, "cuda")


class Mistakes(Base):
    def test_tensors(self):
        say = lambda **changed: (self.model, self.params, {**self.inputs, **changed})
        name = self.model.device
        for words, u in [
            ("tensor `u` has shape [6, 3, 4], but it must have shape [T, B, 3]", numbers(0, (T, B, 4), "f4")),
            ("tensor `u` has shape [3], but", self.host_inputs["u"][0, 0]),
            ("tensor `u` has dtype float64, but it must have dtype float32", self.host_inputs["u"].astype("f8")),
        ]:
            self.refused(words, *say(u=bpm.to_device(u)))
        self.refused("tensor `s` has shape [6, 2]", *say(s=bpm.to_device(self.host_inputs["s"][:, :2])))
        self.refused(f"tensor `u` is a list, but it must be an array on {name}", *say(u=[1.0]))
        wrong = {**self.params, "W": bpm.to_device(numbers(0, (N, 3), "f4"))}
        self.refused("tensor `W` has shape [5, 3], but it must have shape [5, 5]", self.model, wrong, self.inputs)
        self.refused("tensor `H` has shape [6, 3], but", self.model, self.params, self.inputs, {"H": self.inputs["s"]})
        tape = self.model.forward(self.params, self.inputs)
        words = "tensor `a` has shape [6, 3], but it must have shape [6, 3, 2]"
        self.refused(words, tape.backward, {"a": self.bars["b"]})
        self.refused("there is no output `c`", tape.backward, {"c": 0})
        self.refused("there is no input `v`", *say(v=0))
        self.refused("parameters are missing", self.model, {}, self.inputs)
        self.refused("tensor `reset` has shape [6]", self.model, self.params, self.inputs, None, RESET[:, 0].copy())
        self.refused("`reset` has dtype float32", self.model, self.params, self.inputs, None, self.inputs["s"])
        self.assertTrue(tape.backward(self.bars).params["W"].numpy().any(), "a refused call leaves the tape as it was")

    def test_layouts(self):
        if self.model.device != "emulated":
            self.skipTest("arrays of NumPy are on the processor")
        turned = np.ascontiguousarray(self.host_inputs["u"].transpose(1, 0, 2)).transpose(1, 0, 2)
        given = {**self.inputs, "u": turned}
        words = "tensor `u` of shape [6, 3, 3] is not contiguous (its strides are [12, 72, 4] bytes)"
        self.refused(words, self.model, self.params, given)
        odd = np.zeros(4 * N + 1, np.uint8)[1:].view(np.float32)
        self.refused("tensor `wm`", self.model, {**self.params, "wm": odd}, self.inputs)
        swapped = {**self.inputs, "u": self.host_inputs["u"].astype(">f4")}
        self.refused("tensor `u` cannot be read", self.model, self.params, swapped)

    def test_devices(self):
        class Elsewhere:
            def __init__(self, place):
                self.place = place

            def __dlpack__(self, **_):
                raise AssertionError("nobody asks")

            def __dlpack_device__(self):
                return self.place

        name = self.model.device
        for place, words in [
            ((2, 5), f"tensor `u` is on cuda:5, but the model is on {name}"),
            ((10, 0), "is on rocm:0"),
            ((8, 1), "is on DLPack device 8:1"),
        ]:
            self.refused(words, self.model, self.params, {**self.inputs, "u": Elsewhere(place)})
        # What a model on a GPU says of an array of NumPy, wherever this runs.
        accelerator = bpm._device.Accelerator(type("Device", (), {"name": "cuda:1", "place": (2, 1)}))
        self.refused("tensor `u` is on cpu, but the model is on cuda:1", accelerator.view, "u", self.host_inputs["u"])
        given = {**self.host_inputs, "u": Elsewhere((2, 0))}
        self.refused("is on cuda:0, but the model is on the processor", self.cpu, self.host_params, given)

    def test_resets_from_a_device(self):
        expected, _ = self.model(self.params, self.inputs, None, RESET)
        found, _ = self.model(self.params, self.inputs, None, bpm.to_device(RESET))
        np.testing.assert_array_equal(host(found["a"]), host(expected["a"]))

    def test_names_of_devices(self):
        self.refused('there is no device "gpu"', bpm.load, CELL, axes=AXES, device="gpu")
        self.refused('there is no device "cuda:x"', bpm.load, CELL, axes=AXES, device="cuda:x")
        self.refused('there is no tier "3"', bpm.load, CELL, axes=AXES, device="cuda", tier="3")
        for backend in ("interp", "x64"):
            words = f"back end `{backend}` runs on the processor"
            self.refused(words, bpm.load, CELL, axes=AXES, backend=backend, device="cuda")

    def test_bound_parameters_belong_to_their_model(self):
        self.refused("bound to another model", self.model, self.cpu.bind(self.host_params), self.inputs)

    def test_the_native_half_survives(self):
        binding = self.model.bind(self.params)._native
        device = _native.Device("cuda")
        loan = lambda x: device.borrow(x)
        u, s = (loan(x) for x in self.inputs.values())
        outputs = [loan(bpm.to_device(np.zeros(x.shape, "f4"))) for x in (self.bars["a"], self.bars["b"])]
        ends = [loan(bpm.to_device(x)) for x in self.host_states.values()]
        run = lambda inputs, states, resets, *to: binding.infer((T, B), (inputs, states, resets), to)
        none = [None] * len(ends)
        self.assertGreater(run([u, s], none, b"", outputs, ends), 0)
        self.refused("bpm has failed", run, [s, s], none, b"", outputs, ends, error=RuntimeError)
        self.refused("bpm has failed", run, [], none, b"", outputs, ends, error=RuntimeError)
        self.refused("bpm has failed", run, [u, s], none, b"\1", outputs, ends, error=RuntimeError)
        self.refused("bpm has failed", run, [u, s], none, b"", outputs[:1], ends, error=RuntimeError)
        self.refused("an array is missing", run, [u, s], none, b"", [None, None], ends)
        self.refused("", run, [1, s], none, b"", outputs, ends, error=TypeError)
        wide = loan(bpm.to_device(np.zeros((T, B, 3))))
        self.refused("not of dtype float32", run, [wide, s], none, b"", outputs, ends)
        self.refused("the memory is smaller", bpm.to_device(np.zeros(3, "f4"))._memory.capsule, [4], (2, 32), True)
        self.refused("the memory is smaller", bpm.to_device(np.zeros(3, "f4"))._memory.capsule, [-1], (2, 32), True)
        self.refused("the model is on a device", self.model._native.bind, [])
        self.refused("the model is on the processor", self.cpu._native.bind_on_device, [])
        self.refused("no capsule", device.borrow, NoCapsule(), error=BufferError)
        self.assertGreater(run([u, s], none, b"", outputs, ends), 0)


class NoCapsule:
    def __dlpack__(self, **_):
        return 3

    def __dlpack_device__(self):
        return (1, 0)


class Threads(Base):
    def test_the_lock_is_released(self):
        model = bpm.load(CELL, axes={"N": 32}, device="cuda", tier="1")
        params = model.init()
        inputs, _, bars, _ = (placed(x) if i < 2 else x for i, x in enumerate(drawn(model, batch=4, steps=30)))
        bars = {"a": bpm.to_device(bars["a"])}
        ticks, done = [], threading.Event()

        def count():
            while not done.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.001)

        other = threading.Thread(target=count)
        other.start()
        spans = []
        try:
            started = time.perf_counter()
            tape = model.forward(params, inputs)
            spans.append((started, time.perf_counter()))
            started = time.perf_counter()
            tape.backward(bars)
            spans.append((started, time.perf_counter()))
        finally:
            done.set()
            other.join()
        for start, end in spans:
            early, late = start + 0.25 * (end - start), start + 0.75 * (end - start)
            self.assertTrue(any(early < t < late for t in ticks), f"{end - start:.3f} s, {len(ticks)} ticks")

    def test_threads_share_a_device(self):
        """Two models on one device, and a tape that all threads run backward."""
        other = bpm.load(CELL, axes=AXES, device="cuda", tier="1")
        shared = self.model.forward(self.params, self.inputs, self.states)
        run = lambda m: m.forward(self.params, self.inputs, self.states).backward(self.bars)
        expected = {m: run(m) for m in (self.model, other)}
        expected = {m: {k: x.numpy() for k, x in g.params.items()} for m, g in expected.items()}
        wrong = []

        def work(model):
            for _ in range(4):
                tape = model.forward(self.params, self.inputs, self.states)
                for found, m in ((tape.backward(self.bars), model), (shared.backward(self.bars), self.model)):
                    if not all(np.array_equal(found.params[k].numpy(), x) for k, x in expected[m].items()):
                        wrong.append(model)

        threads = [threading.Thread(target=work, args=(m,)) for m in (self.model, other, self.model)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(timeout=300)
            self.assertFalse(t.is_alive(), "no deadlock")
        self.assertFalse(wrong)


class MemoryUse(Base):
    def test_nothing_is_kept_of_what_is_done(self):
        if self.model.device != "emulated":
            self.skipTest("the memory of a GPU is not the process's")
        inputs = {k: np.repeat(x, 200, axis=1) for k, x in self.host_inputs.items()}
        inputs = placed({k: np.ascontiguousarray(x) for k, x in inputs.items()})
        import resource

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for round in range(12):
            if round == 3:
                before = peak()
            tape = self.model.forward(self.params, inputs)
            del tape
        # A tape of 600 rows has some megabytes.
        self.assertLess(peak() - before, 8 << 10)

    def test_a_lender_gets_his_array_back(self):
        class Counted:
            def __init__(self, array):
                self.array = array

            def __dlpack__(self, **options):
                return self.array.__dlpack__(**options)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        array = self.inputs["u"] if self.model.device != "emulated" else self.host_inputs["u"].copy()
        before = sys.getrefcount(array)
        for call in (self.model, self.model.forward):
            given = Counted(array)
            call(self.params, {**self.inputs, "u": given})
            del given
            gc.collect()
            self.assertEqual(sys.getrefcount(array), before)


ALONE = """
import sys; sys.path.insert(0, {here!r})
import numpy as np, bpm
from support import CELL, drawn, placed
"""


class Machines(unittest.TestCase):
    """Devices that are not there, or too small: each in a process of its own."""

    def alone(self, program, **environment):
        here = os.path.dirname(os.path.abspath(__file__))
        env = {k: v for k, v in os.environ.items() if k != "BPM_EMULATED_CUDA"} | environment
        command = [sys.executable, "-P", "-c", ALONE.format(here=here) + program]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    TELL = """
try:
    bpm.load(CELL, axes={"N": 5}, device="cuda")
    print("there is one")
except bpm.DeviceError as error:
    print(error)
"""

    def test_no_driver(self):
        said = self.alone(self.TELL)
        if "there is one" not in said:
            self.assertIn("CUDA", said)
            self.assertIn('device="cpu"', said)
            self.assertNotIn("--device", said)

    def test_no_compiler(self):
        said = self.alone(self.TELL, BPM_EMULATED_CUDA="1", PATH="/nowhere", CXX="")
        self.assertIn("needs a C++ compiler", said)

    @unittest.skipIf(missing, missing)
    def test_too_little_memory(self):
        said = self.alone(
            """
model = bpm.load(CELL, axes={"N": 32}, device="cuda")
params = model.init()
run = lambda batch: model.forward(params, placed(drawn(model, batch=batch, steps=8)[0]))
found = run(2).outputs["b"].numpy()
try:
    run(2000)
    print("it fits")
except bpm.DeviceError as error:
    print(error)
assert np.array_equal(run(2).outputs["b"].numpy(), found)
print("life goes on")
""",
            BPM_EMULATED_CUDA=str(16 << 20),
        )
        self.assertIn("of memory on emulated device", said)
        self.assertIn("batch ", said)
        self.assertIn("life goes on", said)


if __name__ == "__main__":
    unittest.main()
