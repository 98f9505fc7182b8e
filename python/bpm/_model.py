"""Models: specs bound to sizes, run on arrays.

Shapes are written `[T, B, axes…]`: `T` steps, `B` rows of a batch, then the axes that the spec declares. A single step
has `[B, axes…]` for inputs and outputs; states are `[B, axes…]` always.
"""

import os
import threading
import warnings
import weakref
from dataclasses import dataclass
from typing import Dict, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from . import _native
from ._arrays import brackets, check, check_names, lent, owned, view
from ._device import Accelerator, DeviceArray, Processor


@dataclass(frozen=True)
class Parameter:
    """A parameter of a spec: `learn` or `fixed`."""

    name: str
    shape: Tuple[int, ...]
    #: Whether it is trained; a `fixed` one has no gradient.
    learned: bool
    #: Its open range, `None` for a side without a bound.
    range: Tuple[Optional[float], Optional[float]]
    #: The factor of its gradient in training (`gradscale`). `Tape.backward` does not apply it.
    gradscale: float
    doc: str

    @property
    def is_free(self):
        """Whether it may be any number."""
        return self.range == (None, None)


@dataclass(frozen=True)
class Input:
    """An input of a spec, without the axes `T` and `B`."""

    name: str
    shape: Tuple[int, ...]
    #: `signal`, `mod`, `target`, `mask`, `reset` or `noise`.
    role: str
    #: Whether gradients flow into it.
    differentiable: bool
    doc: str


@dataclass(frozen=True)
class State:
    """A state of a spec, without the axis `B`."""

    name: str
    shape: Tuple[int, ...]
    #: Whether every episode draws its start.
    random: bool
    #: Whether it starts at a parameter.
    learned: bool
    doc: str


@dataclass(frozen=True)
class Output:
    """An output of a spec, without the axes `T` and `B`."""

    name: str
    shape: Tuple[int, ...]
    doc: str


class Gradients(NamedTuple):
    """What `Tape.backward` gives; on a device a `DeviceArray` in the place of every array."""

    #: By learned parameter, in the parameter's shape, with respect to its value in the units of the spec.
    params: Dict[str, np.ndarray]
    #: By input into which gradients flow, in the shape of the input.
    inputs: Dict[str, np.ndarray]
    #: By state, `[B, axes…]`: of the states at the start of the sequence.
    state: Dict[str, np.ndarray]


class Bound:
    """Parameters that are read once and used in many calls; see `Model.bind`."""

    def __init__(self, model, native):
        self._model, self._native = model, native


class _Layout(NamedTuple):
    """What a call was given: its extent, and whether it was a single step."""

    steps: int
    rows: int
    single: bool

    @property
    def front(self):
        return (self.rows,) if self.single else (self.steps, self.rows)


class Tape:
    """A batch that has run forward and can run backward, any number of times.

    Attributes:
        outputs: by output, `[T, B, axes…]`, and `penalty`, a scalar, if the spec has penalty terms.
        state: by state, `[B, axes…]`, after the last step.
    """

    def __init__(self, model, layout, native, outputs, state, new):
        self._model, self._layout, self._native, self._new = model, layout, native, new
        self.outputs, self.state = outputs, state

    def backward(self, cotangents: Mapping[str, object], state: Optional[Mapping[str, object]] = None) -> Gradients:
        """Runs backward from the derivatives of a loss; nothing is left of an earlier call.

        Args:
            cotangents: by output, its derivative in the output's shape, and `penalty`, a scalar; what is left out is
                zero.
            state: by state, the derivative by the state after the last step, `[B, axes…]`.

        Raises:
            ValueError: an unknown name, a wrong shape, type or layout.
        """
        model, front = self._model, self._layout.front
        names = list(model.outputs) + (["penalty"] if model.has_penalty else [])
        check_names(cotangents, names, "output")
        bars = [model._optional(cotangents, o, front) for o in model.outputs.values()]
        states = model._states(state, self._layout.rows)
        penalty = _scalar("penalty", cotangents.get("penalty"))
        params = [(p.name, p.shape) if p.learned else None for p in model.parameters.values()]
        inputs = [(i.name, front + i.shape) if i.differentiable else None for i in model.inputs.values()]
        to = (params, inputs, model._state_shapes(self._layout.rows))
        found = model._where.backward(self._native, bars, states, penalty, to, model.dtype, self._new)
        return Gradients(*found)


def _scalar(name, value):
    """A number, or an array of one; zero if there is none."""
    if value is None:
        return 0.0
    if isinstance(value, DeviceArray):
        value = value.numpy()
    array = np.asarray(value) if isinstance(value, (int, float)) else view(name, value)
    if array.shape != () or array.dtype.kind not in "fiu":
        raise ValueError(f"`{name}` has shape {brackets(array.shape)} and dtype {array.dtype}, but it must be a number")
    return float(array)


def _seed(seed):
    """A seed as the generator takes it."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed is an integer from 0 to 2**64 - 1, not {seed!r}")
    return int(seed)


class Model:
    """A compiled model. Made by `bpm.load`; never changes.

    Attributes:
        name: the name of the spec.
        backend: what runs it: `x64`, `cranelift` or `interp`; `cuda` on a device.
        device: where its arrays lie: `cpu`, `cuda:N`, or `emulated`.
        route: which kernels run on a device, and why; `None` on the processor.
        dtype: the type of all arrays: float32, and float64 for `interp`.
        axes: the sizes of all axes.
        parameters, inputs, states, outputs: what the spec declares, by name, in its order.
        has_penalty: whether the spec has penalty terms; outputs have `penalty` then.
    """

    def __init__(self, native, family=None):
        self._native = native
        device = native.device()
        self._where = Processor() if device is None else Accelerator(device)
        self.device, self.route = self._where.name, native.route()
        # The same model on other devices, by their names; whoever has made one keeps it.
        self._family, self._made = _Family() if family is None else family, []
        self._family.members[self.device] = self
        self.name, self.backend, self.dtype = native.name, native.backend, np.dtype(native.dtype)
        self.axes = native.axes()
        self.threads = native.threads
        self.has_penalty = native.has_penalty()
        self.parameters = {p[0]: Parameter(p[0], tuple(p[1]), *p[2:]) for p in native.parameters()}
        self.inputs = {i[0]: Input(i[0], tuple(i[1]), *i[2:]) for i in native.inputs()}
        self.states = {s[0]: State(s[0], tuple(s[1]), *s[2:]) for s in native.states()}
        self.outputs = {o[0]: Output(o[0], tuple(o[1]), *o[2:]) for o in native.outputs()}
        self._inner = {k: i.shape for k, i in self.inputs.items()}

    def __repr__(self):
        axes = ", ".join(f"{name}={size}" for name, size in self.axes.items())
        place = "" if self.device in ("cpu", "emulated") else f", {self.device}"
        return f"<bpm.Model {self.name} ({axes}) on {self.backend}{place}>"

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _again, self._native.recipe()

    def on(self, device: str) -> "Model":
        """The same model on another device, compiled when it is asked for the first time.

        Args:
            device: `cpu`, `cuda` or `cuda:N`.

        Raises:
            DeviceError: there is no such device, or it cannot be used.
            ValueError: the interpreter does not run there.
        """
        name = "cpu" if device == "cpu" else _native.Device(device).name
        with self._family.lock:
            found = self._family.members.get(name)
            if found is None:
                place, text, spec, axes, (backend, _, tier), threads = self._native.recipe()
                if name != "cpu" and backend not in ("auto", "interp"):
                    backend = "auto"
                # What the compiler has to say of the spec it has said.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", _native.SpecWarning)
                    native = _native.Native(place, text, spec, axes, (backend, device, tier), threads)
                found = Model(native, self._family)
                self._made.append(found)
            return found

    # ------------------------------------------------------------- what is drawn

    def init(self, seed: int = 0) -> Dict[str, np.ndarray]:
        """Parameters as the spec's initialisers say, in the units of the spec; the same as `bpm train --seed`."""
        return self._given_away(self._init(seed))

    def _init(self, seed):
        """The same on the processor."""
        drawn = zip(self.parameters.values(), self._native.init(_seed(seed)))
        return {p.name: owned(x, p.shape, self.dtype) for p, x in drawn}

    def _given_away(self, arrays):
        """Arrays of the processor, where the model is."""
        return {name: self._where.give(x) for name, x in arrays.items()}

    def initial_state(self, batch: int, params=None, seed: int = 0) -> Dict[str, np.ndarray]:
        """The states at the start of an episode, `[B, axes…]`: constants, draws by `seed` and row.

        Args:
            params: where states that start at a parameter (`= learn`) find it; needed if there are any.
        """
        return self._given_away(self._initial_state(batch, params, seed))

    def _initial_state(self, batch, params, seed):
        """The same on the processor."""
        if batch < 1:
            raise ValueError(f"a batch has at least 1 row, not {batch}")
        state = {}
        for k, (about, drawn) in enumerate(zip(self.states.values(), self._native.initial_state(batch, _seed(seed)))):
            if drawn is not None:
                state[about.name] = owned(drawn, (batch, *about.shape), self.dtype)
                continue
            name = list(self.parameters)[self._native.starts_at(k)]
            if params is None or name not in params:
                raise ValueError(f"state `{about.name}` starts at parameter `{name}`: pass params=")
            value = check(name, self._on_host(name, params[name]), self.parameters[name].shape, self.dtype)
            state[about.name] = np.repeat(value.reshape((1, *about.shape)), batch, axis=0)
        return state

    def noise(self, steps, batch: int, seed: int = 0, episode: int = 0, training: bool = True) -> Dict[str, np.ndarray]:
        """Draws the noise inputs of a sequence, `[T, B, axes…]`, or of a step, `[B, axes…]`, if `steps` is `None`.

        Out of training dropout is all ones. `episode` makes one draw differ from the next.
        """
        return self._given_away(self._noise(steps, batch, seed, episode, training))

    def _noise(self, steps, batch, seed, episode, training):
        """The same on the processor."""
        front = (batch,) if steps is None else (steps, batch)
        if min(front) < 1 or not 0 <= episode < 1 << 32:
            raise ValueError(f"there is no noise of shape {brackets(front)} for episode {episode}")
        drawn = zip(self.inputs.values(), self._native.noise((steps or 1, batch), _seed(seed), episode, training))
        return {i.name: owned(x, front + i.shape, self.dtype) for i, x in drawn if x is not None}

    # -------------------------------------------------------------- constraints

    def to_raw(self, params) -> Dict[str, np.ndarray]:
        """Raw numbers: what an optimiser moves so that parameters never leave their ranges.

        Raises:
            ValueError: a value outside of its range.
        """
        return self._reparametrised(params, True)

    def from_raw(self, raw) -> Dict[str, np.ndarray]:
        """The values of raw numbers, in the units of the spec."""
        return self._reparametrised(raw, False)

    def _reparametrised(self, given, to_raw):
        self._check_params(given)
        arrays = {}
        for name, about in self.parameters.items():
            arrays[name] = check(name, self._on_host(name, given[name]), about.shape, self.dtype).copy()
        for k, p in enumerate(self.parameters.values()):
            if not p.is_free:
                numbers = arrays[p.name].ravel().tolist()
                arrays[p.name] = owned(self._native.reparametrise(k, numbers, to_raw)[0], p.shape, self.dtype)
        return self._given_away(arrays)

    def chain(self, raw, gradients: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """Gradients by raw numbers, from gradients by values: times the slope of the range, times `gradscale`."""
        check_names(gradients, self.parameters, "parameter")
        check_names(raw, self.parameters, "parameter")
        host = self._on_host
        scaled = {
            name: self._chained(self.parameters[name], host(name, raw[name]), host(name, g))
            for name, g in gradients.items()
        }
        return self._given_away(scaled)

    @staticmethod
    def _on_host(name, value):
        """An array as one of NumPy: that of a device is copied."""
        return value.numpy() if isinstance(value, DeviceArray) else view(name, value)

    def _chained(self, about, raw, gradient):
        low, high = about.range
        scale = about.gradscale
        if not about.is_free:
            x = np.asarray(raw, np.float64)
            sigmoid = np.exp(-np.logaddexp(0.0, -x))
            if low is not None and high is not None:
                scale = scale * (high - low) * sigmoid * np.exp(-np.logaddexp(0.0, x))
            else:
                scale = scale * (sigmoid if high is None else -sigmoid)
        return np.asarray(scale * gradient, self.dtype)

    # ------------------------------------------------------------------ running

    def bind(self, params) -> Bound:
        """Reads parameters once. Every call takes what comes back in place of `params`; later changes of the arrays
        do not reach it. Worth it where many single steps share their parameters.
        """
        if isinstance(params, Bound):
            if params._model is not self:
                raise ValueError(f"these parameters were bound to another model than `{self.name}`")
            return params
        return Bound(self, self._where.bind(self._native, self._params(params)))

    def __call__(self, params, inputs, state=None, reset=None):
        """Runs a sequence, or a single step, without a tape.

        Args:
            params: by parameter, an array in the units of the spec; or what `bind` gave.
            inputs: by input, `[T, B, axes…]`; or `[B, axes…]` for a single step.
            state: by state, `[B, axes…]`, where the sequence starts; a state that is left out starts at its own initial
                value.
            reset: booleans `[T, B]`, or `[B]` for a single step: before which steps all states of a row return to
                their own initial values.

        Returns:
            `(outputs, state)`: by output, `[T, B, axes…]` or `[B, axes…]`, with a scalar `penalty` if the spec has
            penalty terms (their sum, averaged over steps and rows); by state, `[B, axes…]`, after the last step.

        Raises:
            ValueError: a missing or unknown name, a wrong shape, type, device or layout.
            MemoryError: the batch does not fit into memory.
        """
        _, outputs, ends, _ = self._run(params, inputs, state, reset, False, None)
        return outputs, ends

    def forward(self, params, inputs, state=None, reset=None) -> Tape:
        """The same with a tape, which holds `outputs` and `state` and can run backward."""
        return self._forward(params, inputs, state, reset, None)

    def _forward(self, params, inputs, state, reset, new):
        """The same, with results in arrays that `new(shape, dtype)` makes."""
        layout, outputs, ends, tape = self._run(params, inputs, state, reset, True, new)
        return Tape(self, layout, tape, outputs, ends, new)

    def _run(self, params, inputs, state, reset, kept, new):
        layout, given, states, resets = self._given(inputs, state, reset)
        binding = self.bind(params)._native
        sequence = ((layout.steps, layout.rows), given, states, resets, self.dtype)
        shapes = [(o.name, layout.front + o.shape) for o in self.outputs.values()]
        ends = self._state_shapes(layout.rows)
        outputs, ends, penalty, tape = self._where.run(binding, sequence, kept, shapes, ends, new)
        if self.has_penalty:
            outputs["penalty"] = np.asarray(penalty, self.dtype)
        return layout, outputs, ends, tape

    def _state_shapes(self, rows):
        return [(s.name, (rows, *s.shape)) for s in self.states.values()]

    def _view(self, name, value):
        return self._where.view(name, value)

    def _optional(self, given, about, front):
        value = given.get(about.name)
        if value is None:
            return None
        return lent(about.name, self._view(about.name, value), front + about.shape, self.dtype)

    def _check_params(self, params):
        check_names(params, self.parameters, "parameter")
        missing = [p for p in self.parameters.values() if p.name not in params]
        if missing:
            shapes = ", ".join(f"`{p.name}` {brackets(p.shape)}" for p in missing)
            raise ValueError(f"parameters are missing: {shapes}")

    def _params(self, params):
        self._check_params(params)
        return [
            lent(name, self._view(name, params[name]), about.shape, self.dtype)
            for name, about in self.parameters.items()
        ]

    def _states(self, state, rows):
        if state is None:
            return [None] * len(self.states)
        check_names(state, self.states, "state")
        return [self._optional(state, about, (rows,)) for about in self.states.values()]

    def _given(self, inputs, state, reset):
        """Everything but parameters, checked, in the order of the spec."""
        check_names(inputs, self.inputs, "input")
        arrays = {name: self._view(name, value) for name, value in inputs.items() if value is not None}
        mask = None if reset is None else self._mask(reset)
        layout = self._layout(arrays, mask)
        given = []
        for about in self.inputs.values():
            if about.name in arrays:
                given.append(lent(about.name, arrays[about.name], layout.front + about.shape, self.dtype))
            elif about.role == "reset":
                given.append(None)
            else:
                hint = "; draw it with model.noise(…)" if about.role == "noise" else ""
                shape = brackets(layout.front + about.shape)
                raise ValueError(f"input `{about.name}` is missing; it needs an array of shape {shape}{hint}")
        resets = self._resets(layout, mask, given)
        states = self._states(state, layout.rows)
        self._check_random(states, resets)
        return layout, given, states, b"" if resets is None else resets.tobytes()

    def _layout(self, arrays, mask):
        """T and B, from the first input that is there, or from `reset`."""
        for name, about in self.inputs.items():
            if name in arrays:
                shape = tuple(arrays[name].shape)
                front = len(shape) - len(about.shape)
                if front not in (1, 2) or shape[front:] != about.shape or min(shape[:front]) < 1:
                    wanted = ", ".join(["T", "B", *map(str, about.shape)])
                    step = ", ".join(["B", *map(str, about.shape)])
                    raise ValueError(
                        f"tensor `{name}` has shape {brackets(shape)}, but it must have shape [{wanted}], or "
                        f"[{step}] for a single step, with T and B at least 1"
                    )
                return _Layout(1 if front == 1 else shape[0], shape[front - 1], front == 1)
        if mask is not None and mask.ndim in (1, 2) and min(mask.shape) >= 1:
            return _Layout(1 if mask.ndim == 1 else mask.shape[0], mask.shape[-1], mask.ndim == 1)
        if self.inputs:
            names = ", ".join(f"`{name}`" for name in self.inputs)
            raise ValueError(f"there are no inputs; {names} must be arrays of shape [T, B, …]")
        raise ValueError("the spec has no inputs, so `reset` of shape [T, B] must say how long it runs")

    def _resets(self, layout, mask, given):
        """`reset`, and inputs with that role; none if nothing is reset."""
        resets = None if mask is None else check("reset", mask, layout.front, np.dtype(bool))
        for about, array in zip(self.inputs.values(), given):
            if about.role == "reset" and array is not None:
                mask = (self._where.read(array) != 0).reshape(layout.front)
                resets = mask if resets is None else resets | mask
        return resets if resets is not None and resets.any() else None

    def _mask(self, reset):
        """Resets are read on the processor: an array of NumPy, or one where the model is."""
        array = reset if isinstance(reset, np.ndarray) else self._view("reset", reset)
        if not isinstance(array, np.ndarray):
            array = self._where.read(check("reset", array, tuple(array.shape), "bool"))
        if str(array.dtype) != "bool":
            raise ValueError(f"tensor `reset` has dtype {array.dtype}, but it must have dtype bool")
        return np.ascontiguousarray(array)

    def _check_random(self, states, resets):
        for about, array in zip(self.states.values(), states):
            if about.random and array is None:
                raise ValueError(
                    f"state `{about.name}` starts at random: pass state=model.initial_state(batch, seed=…), or your "
                    f"own `{about.name}`"
                )
            if about.random and resets is not None:
                raise ValueError(
                    f"state `{about.name}` starts at random, so a reset does not know where it returns to: end the "
                    "sequence there and begin another with state=…"
                )


class _Family:
    """A model on several devices."""

    def __init__(self):
        self.members, self.lock = weakref.WeakValueDictionary(), threading.Lock()


def load(path, spec=None, axes=None, backend="auto", threads=None, device="cpu", tier="auto") -> Model:
    """Compiles a spec.

    Args:
        path: a file (`FILE.bpm`, or `FILE.bpm#NAME`), or the text of a spec: a string with a line break or a brace.
        spec: which spec of the file; not needed where there is one that no other uses as a layer.
        axes: sizes of axes, as `--axis` of the commands: `{"N": 100}`.
        backend: `auto`, `x64`, `cranelift` (float32) or `interp` (float64, slow, for checks).
        threads: at most so many threads for a batch; all of the machine if `None`. Results do not depend on it.
        device: `cpu`, or `cuda` and `cuda:N`: there all arrays lie on the device. Where `BPM_EMULATED_CUDA` is set, the
            emulated device is in the place of all others.
        tier: on a device, as `--tier` of the commands: kernels for each step (`1`), one for a whole sequence (`2`), one
            forward and the other backward (`1,2`, `2,1`), or what is estimated to take less time (`auto`).

    Raises:
        DeviceError: the device, its driver or its compiler is missing, or has failed.
        SpecError: the spec has errors; the message shows them all with their places.
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: an axis without a size, an unknown axis, an unknown back end.
    """
    place = os.fspath(path)
    if not isinstance(place, str):
        raise ValueError("a path is text, not bytes")
    is_text = isinstance(path, str) and ("\n" in place or "{" in place)
    text, place = (place, "<text>") if is_text else (None, place)
    sizes = {}
    for name, size in (axes or {}).items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"axis `{name}` has size {size!r}, but a size is an integer of at least 1")
        sizes[name] = int(size)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads is {threads!r}, but it must be an integer of at least 1, or None")
    return Model(_native.Native(place, text, spec, sizes, (backend, device, tier), threads))


def _again(*recipe):
    """A model from its recipe, in another process."""
    return Model(_native.Native(*recipe))
