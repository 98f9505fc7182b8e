"""What counts as an array, and what is said of one that does not.

Arrays are read where they lie: NumPy arrays, whatever speaks the buffer protocol, and whatever speaks DLPack and lies
in the memory of the processor (PyTorch, JAX, CuPy's host arrays). Nothing is converted and nothing is copied; an array
of another type, another shape or another layout is refused with a `ValueError` that names it. Arrays on a device are
borrowed (`_device.py`) and checked by the same words.
"""

import difflib

import numpy as np

# DLPack's numbers of devices whose memory the processor reads: kDLCPU, kDLCUDAHost, kDLROCMHost.
_HOST_DEVICES = (1, 3, 11)

# And of some others, as messages name them.
_DEVICES = {1: "cpu", 2: "cuda:{}", 3: "cpu, pinned", 10: "rocm:{}", 13: "cuda, managed"}


def place_of(value):
    """Where an array that speaks DLPack lies, as DLPack numbers devices, and in words."""
    kind, number = map(int, getattr(value, "__dlpack_device__", lambda: (1, 0))())
    words = getattr(value, "device", None) or _DEVICES.get(kind, f"DLPack device {kind}:{{}}").format(number)
    return (kind, number), words


def brackets(shape):
    """A shape as messages and `bpm run` write it: `[5, 3]`."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def view(name, value):
    """`value` as a NumPy array of the same memory; `name` is for messages."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        place, where = place_of(value)
        if place[0] not in _HOST_DEVICES:
            raise ValueError(
                f"tensor `{name}` is on {where}, but the model is on the processor: copy it there, as `.cpu()` does, "
                "or load the model with device="
            )
        try:
            return np.from_dlpack(value)
        except (BufferError, TypeError, RuntimeError) as reason:
            raise ValueError(f"tensor `{name}` cannot be read: {reason}") from reason
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        kind = type(value).__name__
        raise ValueError(
            f"tensor `{name}` is a {kind}, but it must be an array: NumPy's, or one that speaks DLPack or the "
            "buffer protocol"
        ) from None


def check(name, array, shape, dtype):
    """Refuses an array of another type, shape or layout; a shape is a tuple whose free sizes are words."""
    if str(array.dtype) != str(dtype):
        raise ValueError(f"tensor `{name}` has dtype {array.dtype}, but it must have dtype {dtype}")
    found = tuple(array.shape)
    fits = len(found) == len(shape)
    if not fits or any(isinstance(b, int) and a != b for a, b in zip(found, shape)):
        raise ValueError(f"tensor `{name}` has shape {brackets(found)}, but it must have shape {brackets(shape)}")
    if not _is_whole(array):
        raise ValueError(
            f"tensor `{name}` of shape {brackets(shape)} is not contiguous (its strides are "
            f"{brackets(array.strides)} bytes): pass numpy.ascontiguousarray(…) or tensor.contiguous()"
        )
    return array


def _is_whole(array):
    """Whether elements follow each other, row by row."""
    if isinstance(array, np.ndarray):
        return array.flags.c_contiguous and array.flags.aligned
    return array.is_contiguous


def lent(name, array, shape, dtype):
    """A checked array, as the native half reads it: in one dimension, of the same memory, or borrowed."""
    array = check(name, array, shape, dtype)
    return array.reshape(-1) if isinstance(array, np.ndarray) else array


def unknown(name, names, what):
    """The error for a name that nothing has."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(f'`{n}`' for n in names) or 'none'}"
    return ValueError(f"there is no {what} `{name}`; {hint}")


def check_names(given, names, what):
    """Refuses a mapping with names that nothing has."""
    if not hasattr(given, "keys"):
        raise ValueError(f"{what}s are given as a mapping from names to arrays, not as a {type(given).__name__}")
    for name in given.keys():
        if name not in names:
            raise unknown(name, list(names), what)


def owned(memory, shape, dtype):
    """An array of memory that bpm has given away."""
    return np.frombuffer(memory, dtype).reshape(shape)
