"""The module that runs forward and backward, what of it learns, and the running average of its weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .distribution import own_part, shards_weights
from .task import Loop, Task


class Worker(nn.Module):
    """The task's own module, or a copy of it in another precision.

    The weights that the optimizer changes stay the task's, in float32; a copy hands its gradients over before
    every step and takes the weights after it.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.recorded = False
        self.module = module if dtype is None else copy.deepcopy(module).to(dtype)
        # A plain tuple: registered here as well, the originals would be saved and distributed twice.
        self._originals = None if dtype is None else (module,)

    def forward(self, *inputs: Tensor) -> Any:
        if self.dtype is not None:
            inputs = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in inputs)
        return self.module(*inputs)

    @property
    def learning(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """What the optimizer changes, each with what forward and backward use; the same without a copy.

        Asked for anew where it matters: sharding puts other parameters in the place of those that it found.
        """
        original = self.module if self._originals is None else self._originals[0]
        pairs = zip(original.parameters(), self.module.parameters(), strict=True)
        return [(own, used) for own, used in pairs if used.requires_grad]

    def freeze_unused(self) -> int:
        """Stop optimizing weights that the last backward pass did not reach and return their number.

        Distributed training would wait for their gradients.
        """
        frozen = 0
        for own, used in self.learning:
            if used.grad is None:
                own.requires_grad_(False)
                used.requires_grad_(False)
                frozen += 1
            used.grad = None
        return frozen

    @torch.no_grad()
    def keep_gradients(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """Make the gradients of a first batch one's own, for those of further batches to be added.

        What a recorded backward pass gives is its own memory, into which its next replay writes.
        """
        for _, used in pairs:
            if self.recorded and used.grad is not None:
                used.grad = used.grad.clone()

    @torch.no_grad()
    def hand_over_gradients(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        if self.dtype is None:
            return
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for own, used in pairs:
            assert used.grad is not None
            own.grad = torch.empty_like(own) if own.grad is None else own.grad
            targets.append(own.grad)
            sources.append(used.grad)
        torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def take_weights(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """Prepare the next step: weights of the last one, no gradients."""
        if self.dtype is not None:
            torch._foreach_copy_([used for _, used in pairs], [own for own, _ in pairs])
        for _, used in pairs:
            used.grad = None

    def originals(self) -> dict[str, Tensor]:
        """The float32 weights of a copy, which no one else would save; empty without a copy."""
        return {} if self._originals is None else dict(self._originals[0].state_dict())

    def load_originals(self, weights: dict[str, Tensor]) -> None:
        if self._originals is not None:
            self._originals[0].load_state_dict(weights)


def make_worker(task: Task, loop: Loop, accelerator: Accelerator) -> tuple[Worker, int, str]:
    """Build the worker, find out what learns, record its CUDA graphs.

    Graphs must lie inside DDP, so this comes before it.

    Returns:
        the worker, the number of weights that are frozen because nothing depends on them, and how it runs.
    """
    on_gpu = accelerator.device.type == "cuda"
    worker = Worker(task.module, torch.bfloat16 if loop.precision == "bf16_weights" and on_gpu else None)
    inputs, targets = task.draw(0.0)
    with accelerator.autocast():
        outputs = worker(*inputs)
    task.losses(outputs, targets)["loss"].backward()
    frozen = worker.freeze_unused()
    if not on_gpu or not loop.cuda_graph or shards_weights(accelerator):
        return worker, frozen, "eager"
    del outputs
    try:
        samples = tuple(x.clone() for x in inputs)
        with accelerator.autocast():
            torch.cuda.make_graphed_callables(worker, samples, allow_unused_input=True)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return worker, frozen, f"eager, recording failed: {str(error).splitlines()[0]}"
    worker.recorded = True
    return worker, frozen, "recorded"


class Average:
    """A running average of weights (EMA), which `applied` puts in the weights' place for a while.

    A `decay` of 0 keeps no average: the weights are their own.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = [p for p in parameters if p.requires_grad] if decay else []
        self.decay = decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        if not self.values:
            return
        # A young average follows quickly: the first weights are worth little.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> list[Tensor]:
        """What this process holds of the average, in the order of the parameters."""
        return [own_part(value) for value in self.values]

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        for value, saved in zip(self.values, state, strict=True):
            own_part(value).copy_(saved)

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)
