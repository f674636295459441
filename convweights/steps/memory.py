"""What brings perturbed weights back to the bit: a journal of a few bits an element, or copies.

A memory is made for tensors of certain sizes and a certain scale, and used again for each step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.weak import WeakIdKeyDictionary

from convweights.ops import journal, update_call
from convweights.ops.targets import Targets
from convweights.ops.versions import write
from convweights.stream import DISTRIBUTIONS

# Copies of more than this share of the bytes are worth a warning where a journal was asked for.
_WORTH_SAYING = 0.05


@dataclass(frozen=True)
class Noise:
    """What is added: ``scale`` times the noise of a distribution, a seed and a step."""

    distribution: str
    scale: float
    seed: int
    step: int

    def opposite(self) -> Noise:
        return Noise(self.distribution, -self.scale, self.seed, self.step)

    @property
    def signed_seed(self) -> int:
        return self.seed - 2**64 if self.seed >= 2**63 else self.seed


@dataclass
class Memory:
    """Of tensors on one device: which are in the journal, by position, and copies of the others."""

    likeness: tuple[object, ...]
    most: float  # the scale that it is made for, and those down to an eighth
    journaled: list[int]
    starts: list[int]  # of those, in the logical index
    layout: journal.Layout
    journal: torch.Tensor
    copies: dict[int, torch.Tensor]
    busy: bool = field(default=False)

    @property
    def nbytes(self) -> int:
        return (self.journal.nbytes if self.journaled else 0) + sum(copy.nbytes for copy in self.copies.values())

    def serves(self, likeness: tuple[object, ...], scale: float) -> bool:
        return not self.busy and self.likeness == likeness and self.most / 8 <= abs(scale) <= self.most

    def enter(self, part: Targets, noise: Noise) -> None:
        for position, copy in self.copies.items():
            copy.copy_(part.tensors[position].detach())
        _perturb(part.only(list(self.copies)), noise)
        if self.journaled:
            self.journal[:8].zero_()
            self._run(part, noise, journal.ENTER)
            self._copy_what_did_not_fit(part, noise, noise)

    def flip(self, part: Targets, first: Noise, now: Noise) -> None:
        """From the weights moved by ``now``, which is ``first`` or its opposite, to those moved by the other one."""
        self._put_back(part)
        _perturb(part.only(list(self.copies)), now.opposite())
        if self.journaled:
            self._run(part, first, journal.FLIP)
            self._copy_what_did_not_fit(part, first, now.opposite())

    def leave(self, part: Targets, first: Noise) -> None:
        self._put_back(part)
        if self.journaled:
            self._run(part, first, journal.LEAVE)

    def _put_back(self, part: Targets) -> None:
        for position, copy in self.copies.items():
            tensor = part.tensors[position]
            write((tensor,), _copy, tensor, copy)

    def _run(self, part: Targets, noise: Noise, action: int, places: Sequence[int] | None = None) -> None:
        """An action on all tensors of the journal, or on those at some places of it."""
        places = range(len(self.journaled)) if places is None else places
        layout = self.layout.only(places)
        tensors = [part.tensors[self.journaled[k]] for k in places]
        write(
            tensors,
            journal.operator,
            tensors,
            self.journal,
            layout.sections,
            layout.rooms,
            layout.pool,
            [part.streams[self.journaled[k]] for k in places],
            [self.starts[k] for k in places],
            DISTRIBUTIONS.index(noise.distribution),
            noise.scale,
            noise.signed_seed,
            noise.step,
            action,
        )

    def _copy_what_did_not_fit(self, part: Targets, first: Noise, wanted: Noise) -> None:
        """Tensors with chunks that found no space in the journal, and are as they were, are copied from now on."""
        if not int(self.journal[4:8].view(torch.int32)):
            return
        pending = [k for k, at in enumerate(self.layout.sections) if int(self.journal[at : at + 4].view(torch.int32))]
        self._run(part, first, journal.LEAVE, pending)
        moved = [self.journaled[k] for k in pending]
        for position in moved:
            self.copies[position] = part.tensors[position].detach().clone()
        _perturb(part.only(moved), wanted)
        kept = [k for k in range(len(self.journaled)) if k not in pending]
        self.layout = self.layout.only(kept)
        self.journaled, self.starts = [self.journaled[k] for k in kept], [self.starts[k] for k in kept]
        self.journal[4:8].zero_()
        _say(part, self.copies, "more of them are small beside the noise than their mean tells")


# By the first of the tensors, for as long as it lives.
_memories: WeakIdKeyDictionary = WeakIdKeyDictionary()


def memory_for(part: Targets, noise: Noise, restore: str) -> Memory:
    """One that serves the tensors, made unless there is one that is not in use."""
    likeness = (
        restore,
        noise.distribution,
        tuple((t.shape, t.dtype, t.device) for t in part.tensors),
        tuple(part.boxes),
    )
    known: list[Memory] = _memories.setdefault((*part.around, *part.tensors)[0], [])
    found = next((memory for memory in known if memory.serves(likeness, noise.scale)), None)
    if found is None:
        known[:] = [memory for memory in known if memory.busy or memory.likeness != likeness]
        found = _make(part, noise, restore, likeness)
        known.append(found)
    return found


def _make(part: Targets, noise: Noise, restore: str, likeness: tuple[object, ...]) -> Memory:
    tensors = part.tensors
    starts = {i: start for i in range(len(tensors)) if (start := _start(part, i)) is not None}
    shares = _shares(part, noise, starts) if restore == "journal" else {}
    journaled = list(shares)
    layout = journal.layout_of(
        [tensors[i].numel() for i in journaled], [tensors[i].element_size() for i in journaled], list(shares.values())
    )
    copies = {i: torch.empty_like(tensor) for i, tensor in enumerate(tensors) if i not in shares}
    if restore == "journal":
        _say(part, copies, "they are float64, or sharded across rows, or small beside the noise")
    made = torch.zeros(layout.nbytes, dtype=torch.uint8, device=tensors[0].device)
    return Memory(likeness, abs(noise.scale), journaled, [starts[i] for i in journaled], layout, made, copies)


def _shares(part: Targets, noise: Noise, positions: Iterable[int]) -> dict[int, float]:
    """The share of escapes to expect of each tensor that a journal serves, of those at some positions."""
    found = [i for i in positions if part.tensors[i].dtype != torch.float64 and part.tensors[i].numel()]
    sizes = [_root_mean_square(part.tensors[i].detach()) for i in found]
    shares = {
        i: journal.escapes_of(noise.distribution, noise.scale, size)
        for i, size in zip(found, torch.stack(sizes).tolist() if sizes else [], strict=True)
    }
    return {i: share for i, share in shares.items() if share < 1}


def _root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32)
    if not bool(norm.isfinite()):
        norm = torch.linalg.vector_norm(tensor[tensor.isfinite()].double()).float()
    size: torch.Tensor = norm / tensor.numel() ** 0.5
    return size


def _start(part: Targets, position: int) -> int | None:
    """Where a tensor begins in the logical index, a multiple of a chunk; None where it is not in one piece there."""
    box = part.box(position)
    shape = part.tensors[position].shape
    rank = len(shape)
    whole, offset = (box[:rank], box[rank:]) if box else (shape, [0] * rank)
    cut = next((d for d in range(rank) if shape[d] != whole[d]), rank)
    beyond = next((d for d in range(cut + 1, rank) if shape[d] != whole[d]), None)
    if beyond is not None or any(size != 1 for size in shape[:cut] if cut < rank):
        return None
    start, stride = 0, 1
    for d in range(rank - 1, -1, -1):
        start += offset[d] * stride
        stride *= whole[d]
    return start if start % journal.CHUNK == 0 else None


def _copy(tensor: torch.Tensor, source: torch.Tensor) -> None:
    tensor.detach().copy_(source)


def _perturb(part: Targets, noise: Noise) -> None:
    if part.tensors:
        numbers = (DISTRIBUTIONS.index(noise.distribution), 1.0, 0.0, [noise.scale], [noise.signed_seed], noise.step)
        options = (False, False, True, None)
        write(part.tensors, update_call.operator, part.tensors, [], part.streams, part.boxes, *numbers, *options)


def _say(part: Targets, copies: dict[int, torch.Tensor], why: str) -> None:
    share = sum(copy.nbytes for copy in copies.values()) / max(1, sum(tensor.nbytes for tensor in part.tensors))
    if share > _WORTH_SAYING:
        first = part.label(next(iter(copies)))
        warnings.warn(
            f"{part.function}: {100 * share:.0f}% of the weights' bytes are copied instead of journaled, "
            f"those of {first} for one: {why}",
            stacklevel=5,
        )
