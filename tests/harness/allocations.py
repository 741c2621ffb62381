"""What PyTorch allocates while something runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """A context that notes the size in bytes of every storage that operations return, by its address."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.sizes[storage.data_ptr()] = max(storage.nbytes(), self.sizes.get(storage.data_ptr(), 0))
        return result

    def larger_than(self, size: int, *known: Tensor) -> list[int]:
        """Sizes above `size` bytes of storages that are not those of the known tensors."""
        mine = {value.untyped_storage().data_ptr() for value in known}
        return [held for pointer, held in self.sizes.items() if held > size and pointer not in mine]
