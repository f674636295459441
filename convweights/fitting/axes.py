"""What the dimensions of a weight mean."""

from __future__ import annotations

from dataclasses import dataclass

OUT, IN, GROUPS = "out_channels", "in_channels", "groups"
DEPTH = "depth"
KERNEL = (DEPTH, "height", "width")
LETTERS = dict(zip("OIDHW", (OUT, IN, *KERNEL), strict=True))


@dataclass(frozen=True)
class Axes:
    """The roles of a tensor's dimensions in order; ``groups`` is how many blocks of channels make up the first.

    A convolution has ``(out_channels, in_channels, height, width)``, a transposed one in_channels first. Of a grouped
    one the first dimension is groups times channels of a group, the second the other channels of one group. In a
    ``depthwise`` layer every input channel is a group of its own.
    """

    roles: tuple[str, ...]
    groups: int = 1
    depthwise: bool = False

    def of_rank(self, rank: int) -> Axes:
        """The same with kernel dimensions added, or left out, to make up a rank: a 3D kernel's without its depth."""
        lead = tuple(role for role in self.roles if role not in KERNEL)
        kernel = [role for role in self.roles if role in KERNEL]
        at = min((self.roles.index(role) for role in kernel), default=len(lead))
        if rank == len(self.roles):
            return self
        count = rank - len(lead)
        if not 0 <= count <= len(KERNEL):
            return usual(rank)
        kept = KERNEL[len(KERNEL) - count :]
        return Axes((*lead[:at], *kept, *lead[at:]), self.groups, self.depthwise)


def usual(rank: int) -> Axes:
    """What a tensor of a file is taken for where nothing else is said: O, or O, I and a kernel."""
    kernel = KERNEL[max(0, 5 - rank) :] if rank <= 5 else tuple(f"dimension {d}" for d in range(2, rank))
    return Axes((OUT, IN, *kernel)[:rank])


def of_letters(letters: str) -> Axes:
    """The axes that a layout such as ``HWIO`` spells out."""
    return Axes(tuple(LETTERS[letter] for letter in letters))
