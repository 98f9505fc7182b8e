"""The native half: lists in the order of the spec's declarations. Not for users; see `bpm.Model`."""

from typing import Dict, List, Optional, Tuple

__version__: str

class SpecError(ValueError):
    """A spec does not compile."""

    diagnostics: List[dict]
    """Every mistake as data: code, message, places."""

class DeviceError(RuntimeError):
    """A device is missing, has too little memory, or has failed; or its driver or compiler is missing."""

class SpecWarning(UserWarning):
    """What the compiler warns of in a spec that compiles."""

class Memory:
    """Numbers that bpm has given away; speaks the buffer protocol, as bytes."""

class Native:
    """A spec bound to sizes and a back end."""

    name: str
    backend: str
    dtype: str
    threads: int
    def __init__(
        self,
        place: str,
        text: Optional[str],
        name: Optional[str],
        axes: Dict[str, int],
        runs_on: Tuple[str, str, str],
        threads: Optional[int],
    ) -> None: ...
    def device(self) -> Optional["Device"]: ...
    def route(self) -> Optional[str]: ...
    def recipe(self) -> Tuple[str, str, str, Dict[str, int], Tuple[str, str, str], int]: ...
    def axes(self) -> Dict[str, int]: ...
    def parameters(self) -> List[Tuple[str, List[int], bool, Tuple[Optional[float], Optional[float]], float, str]]: ...
    def inputs(self) -> List[Tuple[str, List[int], str, bool, str]]: ...
    def states(self) -> List[Tuple[str, List[int], bool, bool, str]]: ...
    def outputs(self) -> List[Tuple[str, List[int], str]]: ...
    def has_penalty(self) -> bool: ...
    def init(self, seed: int) -> List[Memory]: ...
    def reparametrise(self, parameter: int, numbers: List[float], to_raw: bool) -> List[Memory]: ...
    def initial_state(self, rows: int, seed: int) -> List[Optional[Memory]]: ...
    def starts_at(self, state: int) -> Optional[int]: ...
    def noise(self, extent: Tuple[int, int], seed: int, episode: int, training: bool) -> List[Optional[Memory]]: ...
    def bind(self, params: list) -> "Binding": ...
    def bind_on_device(self, params: list) -> "DeviceBinding": ...

class Binding:
    """Parameters in the layout of a back end."""

    def infer(
        self, extent: Tuple[int, int], inputs: list, states: list, resets: bytes
    ) -> Tuple[List[Memory], List[Memory], float]: ...
    def forward(
        self, extent: Tuple[int, int], inputs: list, states: list, resets: bytes
    ) -> Tuple[List[Memory], List[Memory], float, "NativeTape"]: ...

class NativeTape:
    """A batch that has run forward."""

    def backward(
        self, outputs: list, states: list, penalty: float
    ) -> Tuple[List[Memory], List[Memory], List[Memory]]: ...

class Borrowed:
    """An array on a device that somebody lends until this is gone."""

    shape: List[int]
    strides: List[int]
    dtype: str
    place: Tuple[int, int]
    is_contiguous: bool

class Device:
    """A device, opened."""

    name: str
    place: Tuple[int, int]
    def __init__(self, device_name: str) -> None: ...
    def borrow(self, value: object) -> Borrowed: ...
    def allocate(self, bytes: int) -> "DeviceMemory": ...
    def upload(self, bytes: bytes) -> "DeviceMemory": ...
    def download(self, borrowed: Borrowed) -> bytes: ...

class DeviceMemory:
    """Memory of a device, which arrays of DLPack are made of."""

    device: str
    place: Tuple[int, int]
    def capsule(self, shape: List[int], element: Tuple[int, int], versioned: bool) -> object: ...

class DeviceBinding:
    """Parameters that a device has read. Lists hold `Borrowed` arrays, and `None` where there is none."""

    def infer(self, extent: Tuple[int, int], given: Tuple[list, list, bytes], to: Tuple[list, list]) -> float: ...
    def forward(
        self, extent: Tuple[int, int], given: Tuple[list, list, bytes], to: Tuple[list, list]
    ) -> Tuple[float, "DeviceTape"]: ...

class DeviceTape:
    """A batch that has run forward on a device."""

    def backward(self, bars: Tuple[list, list, float], to: Tuple[list, list, list]) -> None: ...
