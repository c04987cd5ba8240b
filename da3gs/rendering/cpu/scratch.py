"""Working memory that outlives a call, so that a training step does not fault the same pages in again."""

import numpy as np


class Buffers:
    """Named flat arrays that grow on demand and keep their memory."""

    def __init__(self):
        self._arrays: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int, dtype) -> np.ndarray:
        """The first `size` elements of the array `name`; contents are undefined."""
        array = self._arrays.get(name)
        if array is None or array.size < size or array.dtype != dtype:
            array = np.empty(max(size, 1), dtype)
            self._arrays[name] = array
        return array[:size]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())
