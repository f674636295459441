"""The tensors that an update writes, and what its operator wants to know of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from convweights.ops import check


@dataclass(frozen=True, slots=True)
class Targets:
    """The tensors to write and, in the same order, what the operator wants to know of each.

    ``masks`` and ``boxes`` are empty where no tensor has one. ``labels`` is what errors call the tensors by: names
    where ``named``, or positions, behind ``argument``, or None for one that was given by itself. ``around`` are the
    DTensors whose parts in this process are among the tensors.
    """

    function: str
    argument: str
    labels: Sequence[str | int] | None
    named: bool
    tensors: list[torch.Tensor]
    streams: Sequence[int]
    masks: list[torch.Tensor | None]
    boxes: list[int]
    around: Sequence[torch.Tensor] = ()

    def label(self, position: int) -> str:
        return self.argument if self.labels is None else f"{self.argument}[{self.labels[position]!r}]"

    def checked(self, *, computed: bool = True) -> Targets:
        """The same without tied views, once all can be written and no two overlap; ``computed``: with arithmetic."""
        for position, tensor in enumerate(self.tensors):
            label = self.label(position)
            check.writable(self.function, label, tensor)
            if computed and tensor.dtype not in check.COMPUTE_DTYPES:
                raise TypeError(
                    f"{self.function}: {label} must be float64, float32, float16 or bfloat16, "
                    f"got {check.name(tensor.dtype)}"
                )
            check.rank(self.function, label, tensor)
        tied = self._tied() if check.have_addresses(*self.tensors) else set()
        return self.only([i for i in range(len(self.tensors)) if i not in tied]) if tied else self

    def _tied(self) -> set[int]:
        """The tensors of a module or dict that are an earlier one under another name; other overlaps are errors."""
        tied: set[int] = set()
        spans = sorted((tensor.data_ptr(), i) for i, tensor in enumerate(self.tensors) if tensor.numel())
        for k, (start, i) in enumerate(spans):
            end = start + _extent(self.tensors[i])
            for _, j in spans[k + 1 : next((n for n in range(k + 1, len(spans)) if spans[n][0] >= end), len(spans))]:
                first, second = min(i, j), max(i, j)
                if not check.overlap(self.tensors[i], self.tensors[j]):
                    continue
                if _same_place(self.tensors[i], self.tensors[j]) and self.named:
                    if (self.masks and self.masks[second] is not None) or self.box(first) != self.box(second):
                        raise tie_error(self, first, second)
                    tied.add(second)
                    continue
                raise ValueError(
                    f"{self.function}: {self.label(second)} must not share memory with {self.label(first)}, "
                    f"got views of one storage"
                )
        return tied

    def box(self, position: int) -> list[int]:
        """Shape of the whole and offset in it; empty where no tensor is a piece."""
        start = 2 * sum(tensor.ndim for tensor in self.tensors[:position]) if self.boxes else 0
        return self.boxes[start : start + 2 * self.tensors[position].ndim]

    def only(self, kept: Sequence[int]) -> Targets:
        """The same, but for the tensors at other positions."""
        return replace(
            self,
            labels=self.labels and [self.labels[i] for i in kept],
            tensors=[self.tensors[i] for i in kept],
            streams=[self.streams[i] for i in kept],
            masks=[self.masks[i] for i in kept] if self.masks else [],
            boxes=[number for i in kept for number in self.box(i)],
        )

    def by_device(self) -> list[Targets]:
        """The same in parts of one device each."""
        devices = [tensor.device for tensor in self.tensors]
        return [
            self.only([i for i, other in enumerate(devices) if other == device]) for device in dict.fromkeys(devices)
        ]


def tie_error(targets: Targets, first: int, second: int) -> ValueError:
    return ValueError(
        f"{targets.function}: mask and box of {targets.label(second)} must be left out, got one for a tied weight; "
        f"give it to {targets.label(first)}"
    )


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the tensor's first element to behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()


def _same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
