"""What brings perturbed weights back to the bit: a journal of a few bits an element, or copies.

A memory is made for tensors of certain sizes and a certain scale, and used again for each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(eq=False)  # each is one of its own, and tensors have no one answer
class Memory:
    """Of tensors on one device: which are in the journal, by position, and copies of the others.

    Whatever interrupts :meth:`enter` or :meth:`flip`, :meth:`leave` brings every tensor back: a chunk of the journal
    says by itself whether it is moved, and copies count from when all of them are made.
    """

    likeness: tuple[object, ...]
    most: float  # the scale that it is made for, and those down to an eighth
    journaled: list[int]
    starts: list[int]  # of those, in the logical index
    layout: journal.Layout
    journal: torch.Tensor
    copies: dict[int, torch.Tensor]
    unsaid: list[str]  # warnings, to be given once the weights are in order
    busy: bool = field(default=False)
    copied: bool = field(default=False)

    @property
    def nbytes(self) -> int:
        return (self.journal.nbytes if self.journaled else 0) + sum(copy.nbytes for copy in self.copies.values())

    def serves(self, scale: float) -> bool:
        return not self.busy and self.most / 8 <= abs(scale) <= self.most

    def enter(self, part: Targets, noise: Noise) -> None:
        if self.copies:
            tensors = [part.tensors[i].detach() for i in self.copies]
            _copy(list(self.copies.values()), tensors)
        self.copied = True
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
        self.copied = False

    def _put_back(self, part: Targets) -> None:
        if self.copied and self.copies:
            tensors = [part.tensors[i] for i in self.copies]
            write((*tensors, *part.around), _copy, tensors, list(self.copies.values()))

    def _run(self, part: Targets, noise: Noise, action: int, places: Sequence[int] | None = None) -> None:
        """An action on all tensors of the journal, or on those at some places of it."""
        places = range(len(self.journaled)) if places is None else places
        layout = self.layout.only(places)
        tensors = [part.tensors[self.journaled[k]] for k in places]
        write(
            (*tensors, *part.around),
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
        made = {i: part.tensors[i].detach().clone() for i in moved}
        kept = [k for k in range(len(self.journaled)) if k not in pending]
        self.copies |= made
        self.layout = self.layout.only(kept)
        self.journaled, self.starts = [self.journaled[k] for k in kept], [self.starts[k] for k in kept]
        _perturb(part.only(moved), wanted)
        self.journal[4:8].zero_()
        self.unsaid += _words(part, self.copies, moved, "more of them are small beside the noise than their mean tells")


# Beside the latest one: of another distribution, for instance, of another way to restore, or of more tensors.
_MOST_IDLE = 2

# By the first of the tensors, for as long as it lives.
_memories: WeakIdKeyDictionary = WeakIdKeyDictionary()


def memory_for(part: Targets, noise: Noise, restore: str) -> Memory:
    """One that serves the tensors, made unless there is one that is not in use. It is busy until it is given back."""
    sizes = tuple((t.shape, t.dtype, t.device) for t in part.tensors)
    likeness = (restore, noise.distribution, sizes, tuple(part.boxes))
    known: list[Memory] = _memories.setdefault((*part.around, *part.tensors)[0], [])
    alike = [memory for memory in known if memory.likeness == likeness]
    found = next((memory for memory in alike if memory.serves(noise.scale)), None)
    if found is None:
        # One of the same tensors has just too little room: the scale rises slowly, and may go on to do so.
        rising = any(not memory.busy and memory.most < abs(noise.scale) < 1.5 * memory.most for memory in alike)
        idle = [memory for memory in known if not memory.busy and memory.likeness != likeness]
        known[:] = [memory for memory in known if memory.busy] + idle[-_MOST_IDLE:]
        found = _make(part, noise, restore, likeness, 1.5 if rising else 1.0)
        known.append(found)
    found.busy = True
    return found


def give_back(part: Targets, memory: Memory, *, sound: bool) -> None:
    """For the next block; or for none, where something went wrong."""
    memory.busy = False
    known = _memories.get((*part.around, *part.tensors)[0], [])
    if not sound and memory in known:
        known.remove(memory)


def _make(part: Targets, noise: Noise, restore: str, likeness: tuple[object, ...], headroom: float) -> Memory:
    tensors, most = part.tensors, headroom * abs(noise.scale)
    starts = {i: start for i in range(len(tensors)) if (start := _start(part, i)) is not None}
    shares = _shares(part, replace(noise, scale=most), starts) if restore == "journal" else {}
    # Of a few elements a copy is smaller.
    shares = {
        i: share
        for i, share in shares.items()
        if journal.section_bytes(tensors[i].numel(), tensors[i].element_size(), share) < tensors[i].nbytes
    }
    journaled = list(shares)
    layout = journal.layout_of(
        [tensors[i].numel() for i in journaled], [tensors[i].element_size() for i in journaled], list(shares.values())
    )
    with torch.inference_mode(False):  # to be written in any mode
        copies = {i: torch.empty_like(tensor) for i, tensor in enumerate(tensors) if i not in shares}
        made = torch.zeros(layout.nbytes, dtype=torch.uint8, device=tensors[0].device)
    unsaid = []
    if restore == "journal":
        why = "they are float64, or sharded across rows, or small beside the noise"
        unsaid = _words(part, copies, list(copies), why)
    return Memory(likeness, most, journaled, [starts[i] for i in journaled], layout, made, copies, unsaid)


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


def _copy(tensors: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """As integers: on CUDA torch takes numbers of 16 bits through float32, where every NaN becomes the same one."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    to, values = (
        [tensor.detach().view(integers[tensor.element_size()]) for tensor in each] for each in (tensors, sources)
    )
    torch._foreach_copy_(to, values)


def _perturb(part: Targets, noise: Noise) -> None:
    if part.tensors:
        numbers = (DISTRIBUTIONS.index(noise.distribution), 1.0, 0.0, [noise.scale], [noise.signed_seed], noise.step)
        options = (False, False, True, None)
        write(
            (*part.tensors, *part.around),
            update_call.operator,
            part.tensors,
            [],
            part.streams,
            part.boxes,
            *numbers,
            *options,
        )


def _words(part: Targets, copies: dict[int, torch.Tensor], which: Sequence[int], why: str) -> list[str]:
    """What to say of copies, the last of them those of some positions, where they are worth it."""
    share = sum(copy.nbytes for copy in copies.values()) / max(1, sum(tensor.nbytes for tensor in part.tensors))
    if share <= _WORTH_SAYING:
        return []
    largest = max(which, key=lambda i: part.tensors[i].nbytes)
    return [
        f"{part.function}: {100 * share:.0f}% of the weights' bytes are copied instead of journaled, "
        f"those of {part.label(largest)} for one: {why}"
    ]
