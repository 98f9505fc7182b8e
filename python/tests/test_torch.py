"""PyTorch: derivatives, a network by hand beside the compiled one, training, state_dicts, mistakes."""

import copy
import gc
import io
import os
import sys
import unittest
import weakref

import numpy as np
import support
from support import B, CELL, N, RESET, ROOT, T, drawn

import bpm

torch = support.torch()
if torch is not None:
    import bpm.torch

AXES = {"N": N}


def tensors(named):
    return {k: torch.from_numpy(np.array(x)) for k, x in named.items()}


@unittest.skipIf(torch is None, "PyTorch is not installed")
class Derivatives(unittest.TestCase):
    def module(self, backend="interp"):
        module = bpm.torch.Module(bpm.load(CELL, axes=AXES, backend=backend), seed=1)
        with torch.no_grad():
            module.get_parameter("y.init").copy_(torch.linspace(-0.5, 0.5, N))
        return module

    def test_gradcheck(self):
        """PyTorch's own check, in double precision: parameters, inputs, states; outputs, penalty, last states."""
        module = self.module()
        inputs, states, _, _ = drawn(module.model, batch=2, steps=3)
        names = [name for name, _ in module.named_parameters()]
        params = [p for _, p in module.named_parameters()]
        u = torch.from_numpy(inputs["u"]).requires_grad_()
        given = {k: x.requires_grad_() for k, x in tensors(states).items()}
        for reset in (None, torch.tensor([[False, False], [True, False], [False, False]])):

            def call(u, y, H, *params):
                arguments = ({"u": u, "s": torch.from_numpy(inputs["s"])}, {"y": y, "H": H}, reset)
                outputs, state = torch.func.functional_call(module, dict(zip(names, params)), arguments)
                return (*outputs.values(), *state.values())

            # `gradscale` is a factor of the gradient, and no derivative.
            scaled = [n for n in names if module.model.parameters[n.removesuffix(".raw")].gradscale != 1.0]
            self.assertEqual(scaled, ["tau.raw"])
            fixed = [p.detach() if n in scaled else p for n, p in zip(names, params)]
            self.assertTrue(torch.autograd.gradcheck(call, (u, *given.values(), *fixed)))

    def test_gradscale_scales(self):
        found = []
        for text in (CELL, CELL.replace(" gradscale 0.5", "")):
            module = bpm.torch.Module(bpm.load(text, axes=AXES, backend="interp"), seed=1)
            module(tensors(drawn(module.model)[0]))[0]["a"].sum().backward()
            found.append(module.tau.raw.grad)
        torch.testing.assert_close(2 * found[0], found[1])

    def test_cut_and_joined_sequences(self):
        """Windows through which gradients flow are one sequence; a detached state cuts them."""
        module = self.module()
        inputs = tensors(drawn(module.model)[0])

        def gradient(windows, cut):
            module.zero_grad()
            state, loss = None, 0
            for window in windows:
                outputs, state = module({k: x[window] for k, x in inputs.items()}, state)
                loss = loss + outputs["a"].square().sum()
                state = {k: x.detach() for k, x in state.items()} if cut else state
            loss.backward()
            return module.W.grad.clone()

        whole = gradient([slice(0, T)], False)
        halves = [slice(0, 2), slice(2, T)]
        torch.testing.assert_close(gradient(halves, False), whole, rtol=1e-12, atol=1e-14)
        self.assertGreater((gradient(halves, True) - whole).norm() / whole.norm(), 1e-3)

    def test_a_graph_is_freed_unless_it_is_kept(self):
        module = self.module("auto")
        inputs = tensors(drawn(module.model)[0])
        loss = module(inputs)[0]["a"].sum()
        loss.backward(retain_graph=True)
        first = module.W.grad.clone()
        loss.backward()
        torch.testing.assert_close(module.W.grad, 2 * first)
        with self.assertRaisesRegex(RuntimeError, "retain_graph=True"):
            loss.backward()

    def test_no_second_derivatives(self):
        module = self.module()
        inputs = tensors(drawn(module.model)[0])
        inputs["u"].requires_grad_()
        loss = module(inputs)[0]["a"].square().sum()
        (gradient,) = torch.autograd.grad(loss, inputs["u"], create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "once_differentiable"):
            gradient.sum().backward()

    def test_without_gradients_there_is_no_tape(self):
        module = self.module("auto")
        inputs = tensors(drawn(module.model)[0])
        with torch.no_grad():
            outputs, state = module(inputs)
        kept, _ = module(inputs)
        self.assertIsNone(outputs["a"].grad_fn)
        torch.testing.assert_close(outputs["a"], kept["a"].detach(), rtol=0, atol=0)
        self.assertEqual(outputs["penalty"].shape, ())


@unittest.skipIf(torch is None, "PyTorch is not installed")
class ByHand(unittest.TestCase):
    """The published network with a modulator (specs/backpropamine/simple.bpm), written as PyTorch would have it."""

    def network(self, p, u):
        steps, rows = u.shape[:2]
        y, H = u.new_zeros(rows, p["W"].shape[0]), u.new_zeros(rows, *p["W"].shape)
        policies, values = [], []
        for t in range(steps):
            recurrent = ((p["W"] + p["alpha"] * H) @ y.unsqueeze(2)).squeeze(2)
            new = torch.tanh(u[t] @ p["Wx"].T + p["bx"] + recurrent)
            m = torch.tanh(new @ p["wm"] + p["bm"])
            H = torch.clip(H + m[:, None, None] * new[:, :, None] * y[:, None, :], -1, 1)
            y = new
            policies.append(y @ p["Wo"].T + p["bo"])
            values.append(y @ p["wv"] + p["bv"])
        return torch.stack(policies), torch.stack(values), y, H

    def test_they_agree(self):
        for backend, tolerance in (("interp", 1e-10), ("auto", 1e-4)):
            axes = {"I": 4, "N": 20, "A": 3}
            model = bpm.load(ROOT / "specs/backpropamine/simple.bpm", axes=axes, backend=backend)
            module = bpm.torch.Module(model, seed=2)
            with torch.no_grad():
                module.alpha.mul_(30)
                module.W.mul_(10)
            u = torch.from_numpy(support.numbers(5, (12, 6, 4), model.dtype)).requires_grad_()
            outputs, state = module(u)
            hand = {k: p.detach().clone().requires_grad_() for k, p in module.named_parameters()}
            other = u.detach().clone().requires_grad_()
            policy, value, y, H = self.network(hand, other)
            weights = torch.linspace(-1, 1, policy.numel(), dtype=u.dtype).reshape(policy.shape)
            loss = lambda p, v, H: (weights * p).sum() + v.square().sum() + 0.1 * H.sum()
            loss(outputs["policy"], outputs["value"], state["H"]).backward()
            loss(policy, value, H).backward()
            pairs = [
                ("policy", outputs["policy"], policy),
                ("y", state["y"], y),
                ("H", state["H"], H),
                ("u", u.grad, other.grad),
            ]
            pairs += [(k, p.grad, hand[k].grad) for k, p in module.named_parameters()]
            for name, found, expected in pairs:
                error = support.relative_error(found.detach().numpy(), expected.detach().numpy())
                self.assertLess(error, tolerance, f"{backend}: {name}")
                self.assertGreater(expected.detach().norm(), 1e-4, f"{name} is vacuous")


@unittest.skipIf(torch is None, "PyTorch is not installed")
class Modules(unittest.TestCase):
    def test_training(self):
        """Adam lowers a loss, and no parameter leaves its range."""
        torch.manual_seed(0)
        module = bpm.torch.Module(bpm.load(CELL, axes={"N": 16}), seed=0)
        inputs = tensors(drawn(module.model, batch=16, steps=8)[0])
        target = torch.sin(3 * inputs["u"][..., :2])
        adam = torch.optim.Adam(module.parameters(), lr=0.02)
        losses = []
        for _ in range(120):
            outputs, _ = module(inputs)
            loss = (outputs["a"] - target).square().mean() + 0.01 * outputs["penalty"]
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], 0.5 * losses[0])
        values = module.values()
        self.assertTrue(0 < values["eta"] < 1 and values["tau"] > 1)
        self.assertNotAlmostEqual(values["eta"].item(), 0.3, 3)

    def test_names_and_state_dicts(self):
        model = bpm.load(CELL, axes=AXES)
        module, other = bpm.torch.Module(model, seed=1), bpm.torch.Module(model, seed=2)
        names = {"Wx", "Wo", "wm", "W", "alpha", "eta.raw", "tau.raw", "y.init"}
        self.assertEqual({name for name, _ in module.named_parameters()}, names)
        self.assertEqual(set(module.state_dict()), names | {"g"})
        stored = io.BytesIO()
        torch.save(module.state_dict(), stored)
        stored.seek(0)
        other.load_state_dict(torch.load(stored))
        for name, x in module.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], x, rtol=0, atol=0)
        # Of a run: in the units of the spec; of a checkpoint: raw.
        units = {k: x.detach() for k, x in module.values().items()}
        raw = {
            f"raw.{k}": torch.from_numpy(x) for k, x in model.to_raw({k: x.numpy() for k, x in units.items()}).items()
        }
        for given in (units, raw):
            outer = torch.nn.Sequential(torch.nn.Identity(), bpm.torch.Module(model, seed=3))
            outer.load_state_dict({f"1.{k}": x for k, x in given.items()})
            for name, x in outer[1].values().items():
                torch.testing.assert_close(x, units[name])
        with self.assertRaisesRegex(RuntimeError, "Missing key"):
            other.load_state_dict({k: x for k, x in units.items() if k != "W"})
        with self.assertRaisesRegex(ValueError, "parameter `eta` must lie between 0"):
            other.load_state_dict({**units, "eta": torch.tensor(2.0)})

    def test_copies_stand_alone(self):
        module = bpm.torch.Module(bpm.load(CELL, axes=AXES), seed=1)
        twin = copy.deepcopy(module)
        with torch.no_grad():
            twin.W.zero_()
        self.assertTrue(module.W.any())
        self.assertIs(twin.model, module.model)

    def test_initial_states(self):
        module = bpm.torch.Module(bpm.load(CELL, axes=AXES), seed=1)
        inputs = tensors(drawn(module.model)[0])
        fresh, _ = module(inputs)
        given, _ = module(inputs, module.initial_state(B))
        torch.testing.assert_close(fresh["a"], given["a"], rtol=0, atol=0)
        reset = torch.from_numpy(RESET)
        self.assertFalse(torch.equal(module(inputs, None, reset)[0]["a"], fresh["a"]))


@unittest.skipIf(torch is None, "PyTorch is not installed")
class OnADevice(unittest.TestCase):
    """Tensors that a device reads and writes: those of the processor, which the emulated device reads where they lie;
    and on a GPU, if the tests run there, those of PyTorch's CUDA.
    """

    @classmethod
    def setUpClass(cls):
        missing = support.emulated()
        if missing:
            raise unittest.SkipTest(missing)
        cls.place = "cuda:0" if os.environ.get("BPM_TEST_DEVICE") == "cuda" else "cpu"
        cls.model = bpm.load(CELL, axes=AXES)
        cls.other = bpm.load(CELL, axes=AXES, device="cuda")

    def tensors(self, named):
        return {k: x.to(self.place) for k, x in tensors(named).items()}

    def everything(self, module, tensors, reset):
        """Outputs, states and gradients of two windows, through which gradients flow."""
        inputs, states, bars, ends = (tensors(x) for x in drawn(self.model))
        inputs["u"].requires_grad_()
        states = {k: x.requires_grad_() for k, x in states.items()}
        one, middle = module({k: x[:2] for k, x in inputs.items()}, states, None if reset is None else reset[:2])
        two, last = module({k: x[2:] for k, x in inputs.items()}, middle, None if reset is None else reset[2:])
        found = {k: torch.cat([one[k], two[k]]) for k in ("a", "b")} | {"penalty": one["penalty"] + two["penalty"]}
        loss = sum((found[k] * bars[k]).sum() for k in found) + sum((last[k] * ends[k]).sum() for k in last)
        loss.backward()
        found |= last | {f"grad.{k}": p.grad for k, p in module.named_parameters()}
        found |= {"grad.u": inputs["u"].grad} | {f"grad.{k}": x.grad for k, x in states.items()}
        return {k: x.detach().cpu() for k, x in found.items()}

    def test_it_agrees_with_the_processor(self):
        """Values and gradients, of which those of the processor pass `gradcheck` in double precision."""
        for reset in (None, torch.from_numpy(RESET)):
            expected = self.everything(bpm.torch.Module(self.model, seed=1), tensors, reset)
            module = bpm.torch.Module(self.other, seed=1).to(self.place)
            found = self.everything(module, self.tensors, None if reset is None else reset.to(self.place))
            self.assertEqual(set(found), set(expected))
            for name, x in expected.items():
                # Of a state that nobody starts at.
                if name == "grad.y.init" and reset is None:
                    self.assertFalse(x.any() or found[name].any())
                    continue
                self.assertLess(support.relative_error(found[name], x), 3e-5, name)
                self.assertGreater(x.norm(), 1e-5, f"{name} is vacuous")

    def test_finite_differences(self):
        """The derivative along the gradient, in single precision."""
        module = bpm.torch.Module(self.other, seed=2).to(self.place)
        inputs = self.tensors(drawn(self.model)[0])

        def loss():
            outputs, state = module(inputs)
            return outputs["a"].square().mean() + state["H"].square().mean() + outputs["penalty"]

        loss().backward()
        # `gradscale` is a factor of the gradient, and no derivative.
        params = [p for name, p in module.named_parameters() if name != "tau.raw"]
        norm = sum(p.grad.square().sum() for p in params).sqrt()
        sides = []
        for h in (1e-2, -2e-2):
            with torch.no_grad():
                for p in params:
                    p.add_(h * p.grad / norm)
                sides.append(loss().item())
        self.assertLess(abs((sides[0] - sides[1]) / 2e-2 - norm.item()), 2e-3 * norm.item())

    def test_training_and_inference(self):
        torch.manual_seed(0)
        module = bpm.torch.Module(self.other, seed=0).to(self.place)
        inputs = self.tensors(drawn(self.model, batch=4, steps=8)[0])
        target = torch.sin(3 * inputs["u"][..., :2])
        adam = torch.optim.Adam(module.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            loss = (module(inputs)[0]["a"] - target).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], 0.8 * losses[0])
        with torch.no_grad():
            alone, _ = module(inputs)
        kept, _ = module(inputs)
        torch.testing.assert_close(alone["a"], kept["a"].detach(), rtol=0, atol=0)
        self.assertEqual((alone["a"].device, alone["penalty"].device), (inputs["u"].device, inputs["u"].device))

    def test_graphs_are_freed(self):
        module = bpm.torch.Module(self.other, seed=1).to(self.place)
        inputs = self.tensors(drawn(self.model)[0])
        outputs, _ = module(inputs)
        tape = weakref.ref(outputs["a"].grad_fn.tape)
        outputs["a"].sum().backward(retain_graph=True)
        first = module.W.grad.clone()
        outputs["a"].sum().backward()
        torch.testing.assert_close(module.W.grad, 2 * first)
        self.assertIsNone(tape(), "a tape that has been used is gone")
        outputs, _ = module(inputs)
        tape = weakref.ref(outputs["a"].grad_fn.tape)
        del outputs, _
        gc.collect()
        self.assertIsNone(tape(), "nor does one live on that has not been used")

    def test_device_arrays_are_tensors(self):
        array = bpm.to_device(support.numbers(1, (2, 3), "f4"))
        tensor = torch.from_dlpack(array)
        self.assertEqual(tensor.device, torch.device(self.place))
        tensor.mul_(2)
        np.testing.assert_array_equal(array.numpy(), tensor.cpu().numpy())
        del array
        gc.collect()
        self.assertTrue(torch.isfinite(tensor).all())
        outputs, _ = self.other(self.other.init(1), self.tensors(drawn(self.model)[0]))
        self.assertIsInstance(outputs["a"], bpm.DeviceArray)

    def test_mistakes_are_named(self):
        module = bpm.torch.Module(self.other, seed=1).to(self.place)
        inputs = self.tensors(drawn(self.model)[0])
        for change, words in [
            (inputs["u"].double(), "tensor `u` has dtype float64"),
            (inputs["u"].transpose(0, 1), "tensor `u` of shape"),
            (inputs["u"][..., :2].contiguous(), "tensor `u` has shape"),
            (inputs["u"].to("meta"), "tensor `u` is on meta, but the model is on"),
        ]:
            with self.assertRaisesRegex(ValueError, words):
                module({**inputs, "u": change})

    def test_a_module_follows_its_parameters(self):
        """A model is asked for on the device of the parameters, once."""
        asked = []

        class Parameter(torch.Tensor):
            """A tensor that says that it is on a device that is not here."""

            device = torch.device("cuda", 1)

        class Model:
            device = "cpu"

            def on(self, device):
                asked.append(device)
                return self

        model = Model()
        self.assertIs(bpm.torch._model_for(model, [torch.zeros(1)]), model)
        self.assertEqual(asked, [])
        bpm.torch._model_for(model, [Parameter()])
        self.assertEqual(asked, ["cuda:1"])
        # Tensors of the processor are the emulated device's.
        if self.place == "cpu":
            self.assertIs(bpm.torch._model_for(self.other, [torch.zeros(1)]), self.other)

    def test_to_cuda(self):
        if not torch.cuda.is_available() or self.place == "cpu":
            print("NOT RUN: bpm.torch on CUDA tensors: BPM_TEST_DEVICE=cuda and a GPU are needed", file=sys.stderr)
            self.skipTest("no GPU")
        network = bpm.torch.Module(self.model, seed=1)
        inputs = tensors(drawn(self.model)[0])
        expected, _ = network(inputs)
        network.to("cuda")
        streams = torch.cuda.Stream()
        with torch.cuda.stream(streams):
            # What PyTorch has still to do comes first: the stream is busy when the network is called.
            busy = torch.rand(4096, 4096, device="cuda")
            for _ in range(20):
                busy = busy @ busy / 4096
            moved = {k: x.cuda() + 0 * busy.sum() for k, x in inputs.items()}
            outputs, _ = network(moved)
            loss = outputs["a"].sum()
        loss.backward()
        self.assertEqual(outputs["a"].device.type, "cuda")
        self.assertLess(support.relative_error(outputs["a"].detach().cpu(), expected["a"].detach()), 2e-5)
        with self.assertRaisesRegex(ValueError, "tensor `u` is on cpu, but the model is on cuda:0"):
            network(inputs)
        self.assertEqual(torch.cuda.current_device(), 0)
        network.to("cpu")
        torch.testing.assert_close(network(inputs)[0]["a"], expected["a"])


@unittest.skipIf(torch is None, "PyTorch is not installed")
class Documents(unittest.TestCase):
    def test_the_examples_of_the_document_run(self):
        text = (ROOT / "docs/python.md").read_text()
        blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
        self.assertGreaterEqual(len(blocks), 2)
        given = {"inputs": support.numbers(0, (50, 16, 3), "f4"), "cotangents": support.numbers(1, (50, 16, 2), "f4")}
        missing = support.emulated()
        before = os.getcwd()
        os.chdir(ROOT)
        try:
            for block in blocks:
                if "device=" in block and missing:
                    continue
                # What the first block calls `state` is a tensor that requires a gradient.
                exec(block, given)
                given["state"] = None
        finally:
            os.chdir(before)
        self.assertEqual(given["outputs"]["policy"].shape, (16, 2))
        self.assertEqual(missing or given["policy"].shape, missing or (10, 16, 2))


@unittest.skipIf(torch is None, "PyTorch is not installed")
class Mistakes(unittest.TestCase):
    def test_they_are_named(self):
        module = bpm.torch.Module(bpm.load(CELL, axes=AXES), seed=1)
        inputs = tensors(drawn(module.model)[0])
        for change, words in [
            (inputs["u"].double(), "tensor `u` has dtype float64"),
            (inputs["u"].bfloat16(), "tensor `u` has dtype bfloat16"),
            (inputs["u"].transpose(0, 1), "tensor `u` of shape"),
            (inputs["u"][..., :2].contiguous(), "tensor `u` has shape"),
            (inputs["u"].to("meta"), "tensor `u` is on meta, but the model is on cpu"),
            (inputs["u"].numpy(), "tensor `u` is a ndarray"),
            (inputs["u"].to_sparse(), "tensor `u` is not dense"),
        ]:
            with self.assertRaisesRegex(ValueError, words):
                module({**inputs, "u": change})
        with self.assertRaisesRegex(ValueError, "there is no input `v`"):
            module({**inputs, "v": inputs["u"]})
        with self.assertRaisesRegex(ValueError, "has the inputs `u`, `s`"):
            module(inputs["u"])
        with self.assertRaisesRegex(ValueError, "tensor `Wx` is on meta"):
            copy.deepcopy(module).to("meta")(inputs)
        with self.assertRaisesRegex(ValueError, "parameter `forward` cannot be kept"):
            bpm.torch.Module(bpm.load(CELL.replace("wm", "forward"), axes=AXES))

    def test_tensors_are_read_where_they_lie(self):
        module = bpm.torch.Module(bpm.load(CELL, axes=AXES))
        x = torch.rand(3)
        self.assertEqual(bpm.torch._array(module.model, "x", x).ctypes.data, x.data_ptr())


if __name__ == "__main__":
    unittest.main()
