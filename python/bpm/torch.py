"""Compiled models in PyTorch.

    module = bpm.torch.Module(bpm.load("rule.bpm", axes={"I": 3, "A": 2}), seed=0)
    outputs, state = module({"u": inputs})            # inputs [T, B, 3]
    outputs["policy"].square().mean().backward()

Forward and backward are one `torch.autograd.Function`. Tensors are read and written where they lie, on the processor or
on a CUDA device: a model runs where its parameters are, and is compiled for a device when it first gets there, so that
`module.to("cuda")` is all there is to do. A tensor on another device is refused, never copied in silence. Work on a
device waits for PyTorch's current stream, and is done when a call returns. Only first derivatives exist.
"""

import contextlib
import math
from typing import Dict

import torch
from torch.autograd.function import once_differentiable

from ._arrays import brackets, check_names
from ._model import Model


def _place(tensor):
    """Where a tensor lies, as models name devices; `None` where no model can be."""
    if tensor.device.type == "cuda":
        return f"cuda:{tensor.device.index or 0}"
    return "cpu" if tensor.device.type == "cpu" else None


def _fits(model, place):
    """Whether a model takes tensors of a place; the memory of the emulated device is the processor's."""
    return place == ("cpu" if model.device == "emulated" else model.device)


def _model_for(model, tensors):
    """The model on the device of the first of these tensors."""
    for tensor in tensors:
        place = _place(tensor) if isinstance(tensor, torch.Tensor) else None
        if place is not None:
            return model if _fits(model, place) else model.on(place)
    return model


def _array(model, name, tensor):
    """A tensor as an array of the same memory that the model reads."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"tensor `{name}` is a {type(tensor).__name__}, but it must be a torch.Tensor")
    if not _fits(model, _place(tensor)):
        device = "cpu" if model.device == "emulated" else model.device
        raise ValueError(
            f'tensor `{name}` is on {tensor.device}, but the model is on {model.device}: pass tensor.to("{device}"); '
            "gradients flow through the copy"
        )
    if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
        raise ValueError(f"tensor `{name}` is not dense: pass a tensor of layout torch.strided")
    if tensor.dtype == torch.bfloat16:
        raise ValueError(f"tensor `{name}` has dtype bfloat16, which bpm does not compute in")
    return tensor.detach().numpy() if model.device == "cpu" else tensor.detach()


def _arrays(model, named):
    return {name: _array(model, name, tensor) for name, tensor in named.items() if tensor is not None}


def _mask(reset):
    """Resets are read on the processor."""
    if reset is not None and not isinstance(reset, torch.Tensor):
        raise ValueError(f"tensor `reset` is a {type(reset).__name__}, but it must be a torch.Tensor")
    return None if reset is None else reset.detach().cpu().numpy()


def _new(model):
    """Makes tensors for the results of a model; `None` where bpm makes them."""
    if model.device == "cpu":
        return None
    device = "cpu" if model.device == "emulated" else model.device
    return lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype.name), device=device)


def _tensor(model, found):
    """A result as a tensor where the model is."""
    if isinstance(found, torch.Tensor):
        return found
    tensor = torch.from_numpy(found)
    return tensor.to(model.device) if model.device.startswith("cuda") else tensor


def _at_home(model):
    """The device of the model is PyTorch's current one."""
    return torch.cuda.device(model.device) if model.device.startswith("cuda") else contextlib.nullcontext()


# Whether the backward pass that runs keeps its graph (`retain_graph=True`). Without this function of PyTorch a tape
# lives as long as the graph.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _Sequence(torch.autograd.Function):
    """A sequence as one operation: tensors in the order of `names`, outputs and states as one tuple."""

    @staticmethod
    def forward(ctx, model, names, reset, *tensors):
        groups = {"params": {}, "inputs": {}, "state": {}}
        for (group, name), tensor in zip(names, tensors):
            groups[group][name] = _array(model, name, tensor)
        with _at_home(model):
            tape = model._forward(groups["params"], groups["inputs"], groups["state"], reset, _new(model))
        ctx.set_materialize_grads(False)
        ctx.model, ctx.names, ctx.tape = model, names, tape
        found = list(tape.outputs.values()) + list(tape.state.values())
        ctx.places = [("outputs", k) for k in tape.outputs] + [("state", k) for k in tape.state]
        # A result that knew its tape, and its tape that result, would live forever.
        tape.outputs = tape.state = None
        return tuple(_tensor(model, x) for x in found)

    @staticmethod
    @once_differentiable
    def backward(ctx, *bars):
        model, tape = ctx.model, ctx.tape
        if tape is None:
            raise RuntimeError(
                f"the tape of `{model.name}` was freed by an earlier backward pass: pass retain_graph=True to the "
                "first one to run backward again"
            )
        if not _keeps_graph():
            ctx.tape = None
        given = {"outputs": {}, "state": {}}
        for (group, name), bar in zip(ctx.places, bars):
            if bar is not None and name == "penalty" and group == "outputs":
                given[group][name] = bar.item()
            elif bar is not None:
                given[group][name] = _array(model, name, bar.contiguous())
        with _at_home(model):
            found = tape.backward(given["outputs"], given["state"])._asdict()
        gradients = []
        for (group, name), wanted in zip(ctx.names, ctx.needs_input_grad[3:]):
            gradient = found[group].get(name) if wanted else None
            gradients.append(None if gradient is None else _tensor(model, gradient))
        return None, None, None, *gradients


def run(model: Model, params, inputs, state=None, reset=None):
    """Runs a sequence, or a single step, on tensors; shapes and errors as in `bpm.Model.__call__`.

    Args:
        params: by parameter, a tensor in the units of the spec. Where the first of them is, there the model runs:
            `model` itself, or `model.on(…)`.
        inputs, state, reset: tensors in place of arrays, on the same device; `reset` is read on the processor.

    Returns:
        `(outputs, state)`, through which gradients flow to all that requires them.
    """
    state = {} if state is None else state
    for given, known, what in [
        (params, model.parameters, "parameter"),
        (inputs, model.inputs, "input"),
        (state, model.states, "state"),
    ]:
        check_names(given, known, what)
    reset, model = _mask(reset), _model_for(model, [*params.values(), *inputs.values()])
    named = [(("params", k), t) for k, t in params.items()]
    named += [(("inputs", k), t) for k, t in inputs.items() if t is not None]
    named += [(("state", k), t) for k, t in state.items() if t is not None]
    needed = [t for _, t in named if isinstance(t, torch.Tensor) and t.requires_grad]
    if not (torch.is_grad_enabled() and needed):
        with _at_home(model):
            given = [_arrays(model, named) for named in (params, inputs, state)]
            _, outputs, ends, _ = model._run(*given, reset, False, _new(model))
        found = [_tensor(model, x) for x in (*outputs.values(), *ends.values())]
    else:
        found = _Sequence.apply(model, [place for place, _ in named], reset, *(t for _, t in named))
    names = list(model.outputs) + (["penalty"] if model.has_penalty else [])
    return dict(zip(names, found)), dict(zip(model.states, found[len(names) :]))


class _Scaled(torch.autograd.Function):
    """A number whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, bar):
        return ctx.factor * bar, None


def _value(raw, bounds):
    """The value of a raw number; as `bpm train` has it."""
    low, high = bounds
    if low is not None and high is not None:
        return low + (high - low) * torch.sigmoid(raw)
    softplus = torch.logaddexp(raw, torch.zeros_like(raw))
    return low + softplus if high is None else high - softplus


def _raw(name, value, bounds):
    """The raw number of a value."""
    low, high = (-math.inf if bounds[0] is None else bounds[0]), (math.inf if bounds[1] is None else bounds[1])
    wide = value.detach().to(torch.float64)
    if not bool(((low < wide) & (wide < high)).all()):
        raise ValueError(f"parameter `{name}` must lie between {low} and {high}")
    if math.isfinite(low) and math.isfinite(high):
        raw = torch.logit((wide - low) / (high - low))
    else:
        above = wide - low if math.isfinite(low) else high - wide
        raw = above + torch.log(-torch.expm1(-above))
    return raw.to(value.dtype)


class _Group(torch.nn.Module):
    """Parameters whose names share a word before a dot."""


class Module(torch.nn.Module):
    """A model with its parameters, as a layer of a PyTorch network.

    A parameter `NAME` of the spec is the parameter `NAME` of the module. One with a range (`in (0, 1)`, `> 0`) is kept
    as the raw number that `bpm train` moves, under `NAME.raw`, so that no optimiser can leave the range; the gradient
    that an optimiser sees is that of the raw number, and `gradscale` is applied. `fixed` parameters are buffers. These
    are the keys of the module that `bpmc compile --target torch` prints, and of `bpm export`.

    `load_state_dict` also takes what bpm writes: `params.safetensors`, where all parameters are in the units of the
    spec, and the `raw.NAME` of checkpoints. `values` gives parameters in these units.

    Parameters begin on the model's device, and `to`, `cuda` and `cpu` move them; the model runs where they are.

    Args:
        model: what `bpm.load` gave.
        seed: of the initial parameters; the same as of `bpm train --seed`.
    """

    def __init__(self, model: Model, seed: int = 0):
        super().__init__()
        self.model = model
        self._places = {}
        for name, array in model._init(seed).items():
            self._put(name, _tensor(model, array))

    def _put(self, name, value):
        about = self.model.parameters[name]
        held = value if about.is_free else _raw(name, value, about.range)
        path = name if about.is_free else f"{name}.raw"
        *groups, leaf = path.split(".")
        owner = self
        for group in groups:
            if group not in owner._modules:
                self._refuse(owner, group, name)
                owner.add_module(group, _Group())
            owner = owner._modules[group]
        self._refuse(owner, leaf, name)
        if about.learned:
            owner.register_parameter(leaf, torch.nn.Parameter(held))
        else:
            owner.register_buffer(leaf, held)
        self._places[name] = path

    @staticmethod
    def _refuse(owner, leaf, name):
        if hasattr(owner, leaf):
            raise ValueError(
                f"parameter `{name}` cannot be kept: the module has an attribute `{leaf}` of its own. Rename the "
                "parameter in the spec, or hold it yourself and call bpm.torch.run"
            )

    def _held(self, name):
        *groups, leaf = self._places[name].split(".")
        owner = self
        for group in groups:
            owner = owner._modules[group]
        return getattr(owner, leaf)

    def values(self) -> Dict[str, torch.Tensor]:
        """All parameters in the units of the spec, by name; gradients flow through them to what the module holds."""
        values = {}
        for name, about in self.model.parameters.items():
            held = self._held(name)
            if about.gradscale != 1.0 and held.requires_grad:
                held = _Scaled.apply(held, about.gradscale)
            values[name] = held if about.is_free else _value(held, about.range)
        return values

    def initial_state(self, batch: int, seed: int = 0) -> Dict[str, torch.Tensor]:
        """The states at the start of an episode, `[B, axes…]`, without gradient: see `bpm.Model.initial_state`."""
        values = {name: value.detach().cpu().numpy() for name, value in self.values().items()}
        return self._at_home(self.model._initial_state(batch, values, seed))

    def noise(self, steps, batch: int, seed: int = 0, episode: int = 0) -> Dict[str, torch.Tensor]:
        """The noise inputs, drawn for training or for evaluation as the module's mode says: see `bpm.Model.noise`."""
        return self._at_home(self.model._noise(steps, batch, seed, episode, self.training))

    def _at_home(self, arrays):
        """Arrays of the processor as tensors where the parameters are."""
        device = next((self._held(name).device for name in self._places), torch.device("cpu"))
        return {name: torch.from_numpy(x).to(device) for name, x in arrays.items()}

    def forward(self, inputs, state=None, reset=None):
        """Runs a sequence, `[T, B, axes…]`, or a single step, `[B, axes…]`.

        Args:
            inputs: by input, a tensor; or the tensor itself if the spec has one input.
            state: by state, `[B, axes…]`, where the sequence starts; `detach` it to cut the gradient there.
            reset: booleans, `[T, B]` or `[B]`: before which steps a row returns to its initial states.

        Returns:
            `(outputs, state)`: by output, `[T, B, axes…]` or `[B, axes…]`, and a scalar `penalty` if the spec has
            penalty terms, which is to be added to the loss; by state, `[B, axes…]`, after the last step.
        """
        if isinstance(inputs, torch.Tensor):
            if len(self.model.inputs) != 1:
                names = ", ".join(f"`{name}`" for name in self.model.inputs)
                raise ValueError(
                    f"spec `{self.model.name}` has the inputs {names}: pass a mapping from names to tensors"
                )
            inputs = {next(iter(self.model.inputs)): inputs}
        return run(self.model, self.values(), inputs, state, reset)

    def extra_repr(self):
        return repr(self.model)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """Takes all ways in which bpm names parameters; nothing else differs from torch.nn.Module."""
        for name, path in self._places.items():
            about = self.model.parameters[name]
            own = prefix + path
            others = [prefix + f"raw.{name}"] + ([] if about.is_free else [prefix + name])
            other = next((key for key in others if key in state_dict), None)
            if own in state_dict or other is None:
                continue
            given = state_dict.pop(other)
            if tuple(given.shape) != about.shape:
                raise ValueError(
                    f"parameter `{name}` has shape {brackets(given.shape)} in the state_dict, but it must have "
                    f"shape {brackets(about.shape)}"
                )
            in_units = other == prefix + name
            state_dict[own] = _raw(name, given, about.range) if in_units else given
        super()._load_from_state_dict(state_dict, prefix, *rest)
