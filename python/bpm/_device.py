"""Where arrays lie, and what that changes: the memory of the processor, or that of a device.

On a device arrays come through DLPack, from PyTorch, CuPy, JAX, or as a `DeviceArray` that bpm has made. Whoever has an
array makes bpm's work wait for his own (`__dlpack__(stream=…)`), and a call of bpm returns when its work is done:
nobody waits for bpm. Nothing is copied to the host and back.
"""

import numpy as np

from . import _native
from ._arrays import brackets, lent, owned, place_of, view

# DLPack's kinds of elements, by NumPy's letters.
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}


class DeviceArray:
    """An array in the memory of a device, made by `bpm.to_device` or given by a model there.

    It speaks DLPack: `torch.from_dlpack(array)` is a tensor of the same memory. It lives as long as somebody has it,
    whatever becomes of the model.

    Attributes:
        shape, dtype: as NumPy has them.
        device: `cuda:N`, or `emulated`.
    """

    __slots__ = ("_memory", "device", "dtype", "shape")

    def __init__(self, memory, shape, dtype):
        self._memory, self.shape, self.dtype = memory, tuple(shape), np.dtype(dtype)
        self.device = memory.device

    @property
    def ndim(self):
        """Axes."""
        return len(self.shape)

    @property
    def size(self):
        """Elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def numpy(self) -> np.ndarray:
        """A copy in the memory of the processor."""
        device = _native.Device(_asked(self.device))
        return read(device, device.borrow(self))

    def __dlpack_device__(self):
        return self._memory.place

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        # What a call has written is there when it returns, for every stream.
        if dl_device is not None and tuple(map(int, dl_device)) != self._memory.place:
            raise BufferError(f"the array is on {self.device}: .numpy() copies it to the processor")
        if copy:
            raise BufferError("the array gives its own memory away, and no copy of it")
        versioned = max_version is not None and max_version[0] >= 1
        element = (_KINDS[self.dtype.kind], 8 * self.dtype.itemsize)
        return self._memory.capsule(list(self.shape), element, versioned)

    def __array__(self, *_, **__):
        raise TypeError(f"the array is on {self.device}: .numpy() copies it to the processor")

    def __len__(self):
        if not self.shape:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    def __repr__(self):
        return f"<bpm.DeviceArray {brackets(self.shape)} {self.dtype} on {self.device}>"


def _asked(name):
    """The name that is asked for; the emulated device stands in the place of all others."""
    return "cuda" if name == "emulated" else name


def read(device, borrowed):
    """An array on a device as one of NumPy, copied."""
    flat = np.frombuffer(device.download(borrowed), borrowed.dtype)
    return flat.reshape(borrowed.shape).copy()


def to_device(array, device="cuda") -> DeviceArray:
    """Copies an array of the processor to a device.

    Args:
        array: of NumPy, or what speaks DLPack or the buffer protocol; real numbers, integers or booleans.
        device: `cuda` or `cuda:N`.

    Raises:
        DeviceError: there is no such device, or too little memory.
        ValueError: it is no array, or not of such numbers.
    """
    host = np.ascontiguousarray(view("array", array)).reshape(np.shape(array))
    if host.dtype.kind not in _KINDS or not host.dtype.isnative:
        raise ValueError(f"an array of dtype {host.dtype} cannot lie on a device")
    memory = _native.Device(device).upload(host.tobytes())
    return DeviceArray(memory, host.shape, host.dtype)


class Processor:
    """Arrays in the memory of the processor: those of NumPy."""

    name = "cpu"
    view = staticmethod(view)

    @staticmethod
    def read(array):
        """As an array of NumPy."""
        return array

    @staticmethod
    def give(array):
        """An array of NumPy, for the user."""
        return array

    @staticmethod
    def bind(native, params):
        """Parameters in the layout of the back end."""
        return native.bind(params)

    @staticmethod
    def run(binding, sequence, kept, outputs, states, _new):
        """Runs a sequence: outputs, states, penalty, tape. `outputs` and `states` are names and shapes."""
        extent, given, starts, resets, dtype = sequence
        if kept:
            found, ends, penalty, tape = binding.forward(extent, given, starts, resets)
        else:
            (found, ends, penalty), tape = binding.infer(extent, given, starts, resets), None
        return _named(outputs, found, dtype), _named(states, ends, dtype), penalty, tape

    @staticmethod
    def backward(tape, bars, states, penalty, to, dtype, _new):
        """Runs backward: gradients of parameters, inputs and states. `to` are their names and shapes, with `None` for
        those that nobody wants.
        """
        found = tape.backward(bars, states, penalty)
        return tuple(_named(about, arrays, dtype) for about, arrays in zip(to, found))


def _named(about, arrays, dtype):
    """By name, arrays of memory that bpm has given away."""
    pairs = zip(about, arrays)
    return {each[0]: owned(x, each[1], dtype) for each, x in pairs if each is not None}


class Accelerator:
    """Arrays in the memory of a device. Results are written where their owner wants them: `new(shape, dtype)` makes an
    array there, a `DeviceArray` unless somebody else keeps the memory.
    """

    def __init__(self, device):
        self._device = device
        self.name, self.place = device.name, device.place

    def view(self, name, value):
        """An array of the device, borrowed; `name` is for messages."""
        if not hasattr(value, "__dlpack__"):
            kind = type(value).__name__
            raise ValueError(
                f"tensor `{name}` is a {kind}, but it must be an array on {self.name}: bpm.to_device(…), or a tensor "
                "that speaks DLPack"
            )
        place, where = place_of(value)
        if place != self.place:
            raise ValueError(
                f"tensor `{name}` is on {where}, but the model is on {self.name}: copy it there, as "
                f"`bpm.to_device(…, \"{_asked(self.name)}\")` and a tensor's `.to(…)` do"
            )
        try:
            return self._device.borrow(value)
        except (BufferError, TypeError, RuntimeError) as reason:
            raise ValueError(f"tensor `{name}` cannot be read: {reason}") from reason

    def read(self, borrowed):
        """As an array of NumPy, copied."""
        return read(self._device, borrowed)

    def give(self, array):
        """An array of NumPy, for the user."""
        return DeviceArray(self._device.upload(array.tobytes()), array.shape, array.dtype)

    def new(self, shape, dtype):
        """An array of numbers that nobody knows."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return DeviceArray(self._device.allocate(size), shape, dtype)

    @staticmethod
    def bind(native, params):
        """Parameters in the layout of the kernels."""
        return native.bind_on_device(params)

    def run(self, binding, sequence, kept, outputs, states, new):
        """As `Processor.run`."""
        extent, given, starts, resets, dtype = sequence
        (found, to), (ends, ends_to) = (self._places(about, dtype, new) for about in (outputs, states))
        if kept:
            penalty, tape = binding.forward(extent, (given, starts, resets), (to, ends_to))
        else:
            penalty, tape = binding.infer(extent, (given, starts, resets), (to, ends_to)), None
        return found, ends, penalty, tape

    def backward(self, tape, bars, states, penalty, to, dtype, new):
        """As `Processor.backward`."""
        made = [self._places(about, dtype, new) for about in to]
        tape.backward((bars, states, penalty), tuple(places for _, places in made))
        return tuple(arrays for arrays, _ in made)

    def _places(self, about, dtype, new):
        """Arrays by name, and the same borrowed, in the order of the spec."""
        arrays, places = {}, []
        for each in about:
            if each is None:
                places.append(None)
                continue
            name, shape = each
            arrays[name] = (new or self.new)(shape, dtype)
            places.append(lent(name, self.view(name, arrays[name]), shape, dtype))
        return arrays, places
