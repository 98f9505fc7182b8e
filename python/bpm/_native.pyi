"""The native half: lists in the order of the spec's declarations. Not for users; see `bpm.Model`."""

from typing import Dict, List, Optional, Tuple

__version__: str

class SpecError(ValueError):
    """A spec does not compile."""

    diagnostics: List[dict]
    """Every mistake as data: code, message, places."""

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
        backend_name: str,
        threads: Optional[int],
    ) -> None: ...
    def recipe(self) -> Tuple[str, str, str, Dict[str, int], str, int]: ...
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
