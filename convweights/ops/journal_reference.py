"""journal_ in pure torch: what runs where no native kernel serves a device, and the judge of those that do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convweights.stream import DISTRIBUTIONS, noise

CHUNK = 4096  # elements
ENTER, FLIP, LEAVE = range(3)
_WEIGHTS, _PLUS, _MINUS = range(3)
_ESCAPE = 2
# 16-bit types take w' - d for 0 where it is as small as a rounding error of w'.
_SNAP = {torch.float16: 2.0**11, torch.bfloat16: 2.0**8}


def reference_journal_(
    weights: Sequence[torch.Tensor],
    journal: torch.Tensor,
    sections: Sequence[int],
    rooms: Sequence[int],
    pool: int,
    streams: Sequence[int],
    starts: Sequence[int],
    distribution: int,
    scale: float,
    seed: int,
    step: int,
    action: int,
) -> None:
    """One chunk after another, as csrc/ops/journal.h describes the bytes."""
    rounded = torch.tensor(scale, dtype=torch.float32, device="cpu").item()
    for weight, at, room, stream, start in zip(weights, sections, rooms, streams, starts, strict=True):
        section = _Section(journal, pool, at, weight.numel(), weight.element_size(), room)
        flat = weight.reshape(-1).clone()
        for chunk in range(-(-weight.numel() // CHUNK)):
            part = flat[chunk * CHUNK : (chunk + 1) * CHUNK]
            index = torch.arange(len(part), device=weight.device) + (start + chunk * CHUNK)
            z = noise(DISTRIBUTIONS[distribution], index.cpu(), seed % 2**64, step, stream).to(weight.device)
            _run(section, chunk, part, z * rounded, action)
        weight.copy_(flat.reshape(weight.shape))


def _run(section: _Section, chunk: int, part: torch.Tensor, d: torch.Tensor, action: int) -> None:
    if action == ENTER:
        section.forget(chunk)
    state = section.state(chunk)
    if action != ENTER and state == _WEIGHTS:
        return
    now = -d if state == _MINUS else d
    old = part.clone()
    if action != ENTER:
        codes = section.codes(chunk, len(part))
        if not section.holds(chunk, int((codes == _ESCAPE).sum())):
            section.leave_pending()
            return
        found = ordinal(_wrapped(ordinal(undone(part, now), part.dtype) + codes - 4 * (codes > 1)), part.dtype)
        old = found.to(torch.int32 if part.element_size() == 4 else torch.int16).view(part.dtype)
        old[codes == _ESCAPE] = section.escapes(chunk, int((codes == _ESCAPE).sum()), part.dtype)
        if action == LEAVE:
            part.copy_(old)
            section.set_state(chunk, _WEIGHTS)
            return
    change = -now if action == FLIP else now
    moved = (old.float() + change).to(part.dtype)
    codes = codes_of(old, moved, change)
    escapes = old[codes == _ESCAPE]
    if not section.secure(chunk, len(escapes)):
        return
    part.copy_(moved)
    section.write(chunk, codes, escapes)
    section.set_state(chunk, _MINUS if action == FLIP and state == _PLUS else _PLUS)


def codes_of(old: torch.Tensor, moved: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The corrections of two bits, as int64: 0, 1, 3 for -1, or an escape."""
    off = _wrapped(ordinal(bits(old), old.dtype) - ordinal(undone(moved, d), old.dtype))
    return torch.where(off.abs() > 1, _ESCAPE, off & 3)


def undone(moved: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The bits of the moved weight less what was added to it, in float32, rounded to its dtype."""
    wide = moved.float()
    back = wide - d
    found = bits(back.to(moved.dtype))
    if moved.dtype in _SNAP:
        found = torch.where(back.abs() * _SNAP[moved.dtype] <= wide.abs(), 0, found)
    return found


def bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of numbers as int64, the sign extended."""
    return values.view(torch.int32 if values.element_size() == 4 else torch.int16).long()


def ordinal(found: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where numbers stand in the order of all, by their bits: a negative one of magnitude m at -1 - m. Its inverse."""
    return torch.where(found < 0, -1 - found - 2 ** (8 * dtype.itemsize - 1), found)


def _wrapped(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers + 2**31) % 2**32 - 2**31


class _Section:
    """The part of a journal that is one tensor's; csrc/ops/journal.h says where things are."""

    def __init__(self, journal: torch.Tensor, pool: int, at: int, count: int, item: int, room: int) -> None:
        chunks = -(-count // CHUNK)
        self.journal, self.pool, self.room, self.item = journal, pool, room, item
        self.pending, self.heads = at, at + 8
        self.rooms = self.heads + 8 * chunks
        self.coded = self.rooms + -(-chunks * room * item // 8) * 8

    def state(self, chunk: int) -> int:
        return int(self._head(chunk)[3])

    def set_state(self, chunk: int, state: int) -> None:
        self._head(chunk)[3] = state

    def forget(self, chunk: int) -> None:
        self._head(chunk).zero_()

    def codes(self, chunk: int, count: int) -> torch.Tensor:
        packed = self._codes(chunk, count).long()
        return torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], 1).reshape(-1)[:count]

    def escapes(self, chunk: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([part.view(dtype) for part in self._escapes(chunk, count)])

    def secure(self, chunk: int, escapes: int) -> bool:
        """Space for a chunk's escapes, its own again where they fit; else the chunk is pending."""
        words = -(-max(0, escapes - self.room) * self.item // 4)
        used, size = int(self._word(0)), (len(self.journal) - self.pool) // 4
        if words <= self._held(chunk):
            return True
        if words > size - used:
            self.leave_pending()
            return False
        self._word(0).add_(words)
        self._word(self.heads + 8 * chunk).fill_(used)
        self._head(chunk)[2] = words
        return True

    def holds(self, chunk: int, escapes: int) -> bool:
        """Whether a chunk's escapes can be where its head says, which a journal of other bytes may get wrong."""
        words, held = -(-max(0, escapes - self.room) * self.item // 4), self._held(chunk)
        base, size = int(self._word(self.heads + 8 * chunk)) % 2**32, (len(self.journal) - self.pool) // 4
        return words <= held and (words == 0 or base + held <= size)

    def leave_pending(self) -> None:
        for at in (4, self.pending):
            self._word(at).add_(1)

    def write(self, chunk: int, codes: torch.Tensor, escapes: torch.Tensor) -> None:
        four = torch.nn.functional.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4)
        shifts = torch.tensor([1, 4, 16, 64], device=codes.device)
        self._codes(chunk, len(codes)).copy_((four * shifts).sum(1))
        for place, part in zip(
            self._escapes(chunk, len(escapes)), (escapes[: self.room], escapes[self.room :]), strict=True
        ):
            place.copy_(part.contiguous().view(torch.uint8))

    def _codes(self, chunk: int, count: int) -> torch.Tensor:
        at = self.coded + chunk * CHUNK // 4
        return self.journal[at : at + -(-count // 4)]

    def _escapes(self, chunk: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The bytes of the first ones in their room, of the others in the pool."""
        near = min(count, self.room)
        at = self.rooms + chunk * self.room * self.item
        far = self.pool + 4 * (int(self._word(self.heads + 8 * chunk)) % 2**32)
        return self.journal[at : at + near * self.item], self.journal[far : far + (count - near) * self.item]

    def _held(self, chunk: int) -> int:
        return int(self._head(chunk)[2]) % 2**16

    def _head(self, chunk: int) -> torch.Tensor:
        return self.journal[self.heads + 8 * chunk : self.heads + 8 * chunk + 8].view(torch.int16)

    def _word(self, at: int) -> torch.Tensor:
        return self.journal[at : at + 4].view(torch.int32)
