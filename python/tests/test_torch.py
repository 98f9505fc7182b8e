"""PyTorch: derivatives, a network by hand beside the compiled one, training, state_dicts, mistakes."""

import copy
import io
import os
import unittest

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
class Documents(unittest.TestCase):
    def test_the_examples_of_the_document_run(self):
        text = (ROOT / "docs/python.md").read_text()
        blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
        self.assertGreaterEqual(len(blocks), 2)
        given = {"inputs": support.numbers(0, (50, 16, 3), "f4"), "cotangents": support.numbers(1, (50, 16, 2), "f4")}
        before = os.getcwd()
        os.chdir(ROOT)
        try:
            for block in blocks:
                # What the first block calls `state` is a tensor that requires a gradient.
                exec(block, given)
                given["state"] = None
        finally:
            os.chdir(before)
        self.assertEqual(given["outputs"]["policy"].shape, (16, 2))


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
            (inputs["u"].to("meta"), "tensor `u` is on meta, but bpm computes on the processor"),
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
        x = torch.rand(3)
        self.assertEqual(bpm.torch._array("x", x).ctypes.data, x.data_ptr())


if __name__ == "__main__":
    unittest.main()
