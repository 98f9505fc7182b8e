"""Compiled networks with plastic connections, in NumPy; `bpm.torch` has them in PyTorch.

    import bpm
    model = bpm.load("specs/backpropamine/simple.bpm", axes={"I": 3, "A": 2})
    params = model.init(seed=0)
    tape = model.forward(params, {"u": inputs})       # inputs [T, B, 3], float32
    gradients = tape.backward({"policy": cotangents}) # gradients.params["W"], …

With `bpm.load(…, device="cuda")` all of this is on a GPU, and `bpm.to_device` brings arrays there.

Arrays of other libraries are read where they lie, and computing runs without the interpreter's lock. No array may be
written to while a call reads it.
"""

from ._device import DeviceArray, to_device
from ._model import Bound, Gradients, Input, Model, Output, Parameter, State, Tape, load
from ._native import DeviceError, SpecError, SpecWarning, __version__

__all__ = [
    "Bound",
    "DeviceArray",
    "DeviceError",
    "Gradients",
    "Input",
    "Model",
    "Output",
    "Parameter",
    "SpecError",
    "SpecWarning",
    "State",
    "Tape",
    "__version__",
    "load",
    "to_device",
]
