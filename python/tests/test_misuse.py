"""What is said of mistakes, and that none of them ends the interpreter."""

import os
import tempfile
import threading
import time
import unittest
from pathlib import Path

import bpm
import numpy as np
from bpm import _native
from support import B, CELL, N, RESET, T, drawn, numbers, parameters

AXES = {"N": N}


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = bpm.load(CELL, axes=AXES)
        cls.params = parameters(cls.model)
        cls.inputs, cls.states, cls.bars, cls.ends = drawn(cls.model)

    def refused(self, words, call, *arguments, error=ValueError):
        with self.assertRaises(error) as caught:
            call(*arguments)
        self.assertIn(words, str(caught.exception))
        return caught.exception


class Tensors(Base):
    def test_shapes(self):
        u = self.inputs["u"]
        say = lambda x: (self.model, self.params, {**self.inputs, "u": x})
        self.refused(
            "tensor `u` has shape [6, 3, 4], but it must have shape [T, B, 3]", *say(numbers(0, (T, B, 4), "f4"))
        )
        self.refused("tensor `u` has shape [3], but", *say(u[0, 0]))
        self.refused("with T and B at least 1", *say(u[:0]))
        self.refused(
            "tensor `s` has shape [6, 2], but it must have shape [6, 3]",
            self.model,
            self.params,
            {**self.inputs, "s": self.inputs["s"][:, :2].copy()},
        )
        wrong = {**self.params, "W": numbers(0, (N, 3), "f4")}
        self.refused("tensor `W` has shape [5, 3], but it must have shape [5, 5]", self.model, wrong, self.inputs)
        state = {"H": numbers(0, (B, N), "f4")}
        self.refused(
            "tensor `H` has shape [3, 5], but it must have shape [3, 5, 5]", self.model, self.params, self.inputs, state
        )
        self.refused(
            "tensor `reset` has shape [6], but it must have shape [6, 3]",
            self.model,
            self.params,
            self.inputs,
            None,
            RESET[:, 0],
        )
        step = {k: x[0] for k, x in self.inputs.items()}
        self.refused(
            "tensor `s` has shape [6, 3], but it must have shape [3]",
            self.model,
            self.params,
            {**step, "s": self.inputs["s"]},
        )

    def test_types(self):
        wide = {**self.inputs, "u": self.inputs["u"].astype(np.float64)}
        self.refused("tensor `u` has dtype float64, but it must have dtype float32", self.model, self.params, wide)
        swapped = self.inputs["u"].astype(">f4")
        self.refused("tensor `u` has dtype >f4", self.model, self.params, {**self.inputs, "u": swapped})
        self.refused(
            "tensor `eta` is a float, but it must be an array", self.model, {**self.params, "eta": 0.1}, self.inputs
        )
        self.refused("tensor `u` is a list", self.model, self.params, {**self.inputs, "u": self.inputs["u"].tolist()})
        self.refused(
            "tensor `reset` has dtype int64, but it must have dtype bool",
            self.model,
            self.params,
            self.inputs,
            None,
            RESET.astype(np.int64),
        )
        self.refused("as a mapping", self.model, self.params, [self.inputs["u"]])
        exact = bpm.load(CELL, axes=AXES, backend="interp")
        self.refused("has dtype float32, but it must have dtype float64", exact, self.params, self.inputs)

    def test_layouts(self):
        turned = np.ascontiguousarray(self.inputs["u"].transpose(1, 0, 2)).transpose(1, 0, 2)
        self.refused(
            "tensor `u` of shape [6, 3, 3] is not contiguous", self.model, self.params, {**self.inputs, "u": turned}
        )
        turned = {**self.params, "W": self.params["W"].T}
        self.refused("tensor `W` of shape [5, 5] is not contiguous", self.model, turned, self.inputs)
        odd = np.zeros(4 * N + 1, np.uint8)[1:].view(np.float32)
        self.refused("tensor `wm` of shape [5] is not contiguous", self.model, {**self.params, "wm": odd}, self.inputs)

    def test_devices(self):
        class Elsewhere:
            device = "cuda:0"

            def __dlpack__(self, **_):
                raise AssertionError("nobody asks")

            def __dlpack_device__(self):
                return (2, 0)

        self.refused(
            "tensor `u` is on cuda:0, but the model is on the processor",
            self.model,
            self.params,
            {**self.inputs, "u": Elsewhere()},
        )

    def test_names(self):
        short = {k: x for k, x in self.params.items() if k not in ("W", "wm")}
        self.refused("parameters are missing: `wm` [5], `W` [5, 5]", self.model, short, self.inputs)
        self.refused("there is no parameter `Wy`; did you mean `W", self.model, {**self.params, "Wy": 0}, self.inputs)
        self.refused(
            "input `s` is missing; it needs an array of shape [6, 3]", self.model, self.params, {"u": self.inputs["u"]}
        )
        self.refused("there is no input `v`", self.model, self.params, {**self.inputs, "v": 0})
        self.refused("there are no inputs", self.model, self.params, {})
        self.refused("there is no state `h`", self.model, self.params, self.inputs, {"h": 0})
        tape = self.model.forward(self.params, self.inputs)
        self.refused("there is no output `c`", tape.backward, {"c": 0})
        self.refused("there is no state `z`", tape.backward, {}, {"z": 0})
        self.refused(
            "tensor `a` has shape [6, 3], but it must have shape [6, 3, 2]", tape.backward, {"a": self.bars["b"]}
        )
        self.refused("`penalty` has shape [2]", tape.backward, {"penalty": np.zeros(2)})
        self.assertTrue(tape.backward(self.bars).params["W"].any(), "a refused call leaves the tape as it was")

    def test_starts(self):
        self.refused("state `y` starts at parameter `y.init`: pass params=", self.model.initial_state, 2)
        self.refused("a seed is an integer", self.model.init, -1)
        self.refused("a seed is an integer", self.model.init, 1.5)
        self.refused("no noise of shape [0, 2]", self.model.noise, 0, 2)
        self.refused("at least 1 row", self.model.initial_state, 0, self.params)
        random = bpm.load(CELL.replace("plastic H[N,N] = 0", "plastic H[N,N] ~ normal(0, 0.1)"), axes=AXES)
        self.refused("state `H` starts at random: pass state=", random, self.params, self.inputs)
        self.refused("a reset does not know where it returns to", random, self.params, self.inputs, self.states, RESET)
        start = random.initial_state(B, self.params, seed=3)
        self.assertGreater(start["H"].std(), 0.01)
        random(self.params, self.inputs, start)

    def test_bound_parameters_belong_to_their_model(self):
        bound = bpm.load(CELL, axes={"N": 4}).bind(bpm.load(CELL, axes={"N": 4}).init())
        self.refused("bound to another model", self.model, bound, self.inputs)

    def test_what_does_not_fit(self):
        model = bpm.load(CELL, axes={"N": 2000})
        huge = np.broadcast_to(np.float32(0), (1,))
        steps, rows = 1 << 20, 1 << 12
        binding = model.bind(model.init())._native
        self.refused("memory", binding.forward, (steps, rows), [huge, huge], [None, None], b"", error=MemoryError)


class ReadInPlace(Base):
    def test_other_arrays_are_read_where_they_lie(self):
        class ByDlpack:
            def __init__(self, array):
                self.array = array

            def __dlpack__(self, **options):
                return self.array.__dlpack__(**options)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        expected, _ = self.model(self.params, self.inputs)
        other = {k: ByDlpack(x) for k, x in self.inputs.items()}
        raw = {k: memoryview(x) for k, x in self.params.items()}
        found, _ = self.model(raw, other)
        np.testing.assert_array_equal(found["a"], expected["a"])
        for name, x in self.inputs.items():
            self.assertTrue(np.shares_memory(bpm._arrays.view(name, other[name]), x))
            self.assertTrue(np.shares_memory(bpm._arrays.lent(name, x, x.shape, x.dtype), x))
        frozen = {k: x.copy() for k, x in self.inputs.items()}
        for x in frozen.values():
            x.flags.writeable = False
        np.testing.assert_array_equal(self.model(self.params, frozen)[0]["a"], expected["a"])

    def test_results_belong_to_python(self):
        outputs, state = self.model(self.params, self.inputs)
        for x in (*outputs.values(), *state.values()):
            self.assertTrue(x.flags.writeable and x.flags.c_contiguous and x.flags.aligned)
        # The array is a view of memory that bpm gave away, and of nothing else.
        self.assertIsInstance(outputs["a"].base.base, (memoryview, _native.Memory))
        copy = outputs["a"].copy()
        self.model(self.params, {**self.inputs, "u": -self.inputs["u"]})
        np.testing.assert_array_equal(outputs["a"], copy)


class Specs(Base):
    def test_a_spec_with_errors(self):
        error = self.refused(
            "BPM", bpm.load, CELL.replace("tanh(wm", "tahn(wm").replace("fixed g", "fixed gg"), error=bpm.SpecError
        )
        self.assertIsInstance(error, ValueError)
        self.assertIn("tahn", str(error))
        self.assertGreaterEqual(len(error.diagnostics), 2)
        self.assertTrue(all(d["code"].startswith("BPM") for d in error.diagnostics))

    def test_warnings_are_warnings(self):
        text = CELL.replace("  fixed g", "  learn idle[N] ~ linear\n  fixed g")
        with self.assertWarnsRegex(bpm.SpecWarning, "idle"):
            bpm.load(text, axes=AXES)

    def test_files_sizes_and_names(self):
        self.refused("cannot read `/no/such.bpm`", bpm.load, "/no/such.bpm", error=FileNotFoundError)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "two.bpm"
            path.write_text(CELL + CELL.replace("spec cell", "spec other"))
            self.assertEqual(bpm.load(f"{path}#other", axes=AXES).name, "other")
            self.assertEqual(bpm.load(path, "other", axes=AXES).name, "other")
            self.refused("has 2 specs: cell, other", bpm.load, path)
            self.refused("did you mean `other`?", bpm.load, path, "othr")
            (Path(folder) / "bytes.bpm").write_bytes(b"\xff\xfe")
            self.refused("bytes.bpm", bpm.load, Path(folder) / "bytes.bpm")
        self.refused("N", bpm.load, CELL)
        self.refused("axis `N` has size 0", lambda: bpm.load(CELL, axes={"N": 0}))
        self.refused("axis `N` has size 2.5", lambda: bpm.load(CELL, axes={"N": 2.5}))
        self.refused("M", lambda: bpm.load(CELL, axes={"N": 2, "M": 3}))
        self.refused("there is no back end `cuda`", lambda: bpm.load(CELL, axes=AXES, backend="cuda"))
        self.refused("threads is 0", lambda: bpm.load(CELL, axes=AXES, threads=0))
        self.refused("make its axes smaller", lambda: bpm.load(CELL, axes={"N": 1 << 20}))
        self.refused("text, not bytes", bpm.load, b"x.bpm")


class Boundary(Base):
    """The native half is not for users; it must survive what they do to it all the same."""

    def test_a_panic_is_a_runtime_error(self):
        binding = self.model.bind(self.params)._native
        short = [np.zeros(T * B, np.float32)] * 2
        self.refused("bpm has failed", binding.infer, (T, B), short, [None, None], b"", error=RuntimeError)
        self.refused("bpm has failed", binding.infer, (T, B), [], [], b"", error=RuntimeError)
        tape = self.model.forward(self.params, self.inputs)._native
        self.refused("bpm has failed", tape.backward, [short[0]], [None], 0.0, error=RuntimeError)
        self.refused("bpm has failed", tape.backward, [None, None], [None, None], 0.0, error=RuntimeError)
        self.refused(
            "elements", self.model._native.bind, [np.zeros(1, np.float32)] * 9, error=(ValueError, RuntimeError)
        )
        self.assertTrue(np.isfinite(self.model(self.params, self.inputs)[0]["a"]).all(), "life goes on")

    def test_numbers_that_are_not_finite_pass_through(self):
        inputs = {**self.inputs, "u": np.full_like(self.inputs["u"], np.nan)}
        outputs, _ = self.model(self.params, inputs)
        self.assertTrue(np.isnan(outputs["a"]).any())


class MemoryUse(Base):
    @unittest.skipUnless(Path("/proc/self/statm").exists(), "this system does not tell")
    def test_nothing_is_kept_of_what_is_done(self):
        model = bpm.load(CELL, axes={"N": 100})
        params = model.init()
        inputs, states, bars, ends = drawn(model, batch=4, steps=20)
        resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for round in range(120):
            if round == 20:
                before = resident()
            model.forward(params, inputs, states).backward(bars, ends)
            model(params, inputs)
        # A tape has about a megabyte, the gradients of a batch half of one.
        self.assertLess(resident() - before, 20 << 20)


class Threads(Base):
    def test_the_lock_is_released(self):
        model = bpm.load(CELL, axes={"N": 200}, threads=1)
        params = model.init()
        inputs, _, bars, ends = drawn(model, batch=8, steps=150)
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
            tape.backward(bars, ends)
            spans.append((started, time.perf_counter()))
        finally:
            done.set()
            other.join()
        for start, end in spans:
            # A held lock would let the other thread run before and after, not in the middle.
            early, late = start + 0.25 * (end - start), start + 0.75 * (end - start)
            self.assertTrue(any(early < t < late for t in ticks), f"{end - start:.3f} s, {len(ticks)} ticks")

    def test_threads_share_a_model_and_a_tape(self):
        expected = self.model.forward(self.params, self.inputs, self.states)
        gradient = expected.backward(self.bars, self.ends)
        wrong = []

        def work():
            for _ in range(20):
                tape = self.model.forward(self.params, self.inputs, self.states)
                for found in (tape.backward(self.bars, self.ends), expected.backward(self.bars, self.ends)):
                    if not all(np.array_equal(found.params[k], gradient.params[k]) for k in gradient.params):
                        wrong.append(found)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(timeout=60)
            self.assertFalse(t.is_alive(), "no deadlock")
        self.assertFalse(wrong)

    @unittest.skipUnless(hasattr(os, "fork"), "this system has no fork")
    def test_a_child_process_can_go_on(self):
        expected = self.model(self.params, self.inputs)[0]["a"]
        child = os.fork()
        if child == 0:
            same = np.array_equal(self.model(self.params, self.inputs)[0]["a"], expected)
            os._exit(0 if same else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)


if __name__ == "__main__":
    unittest.main()
