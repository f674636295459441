"""From a number of channels to a map: the defaults of each direction, and what cannot be reached."""

from __future__ import annotations

from dataclasses import dataclass

from convweights.checkpoint.rules import OR_AN_INITIALIZER, Channels
from convweights.maps import Blocks, Interleave, Map, Offset, Strided, Tile
from convweights.ops.initializers import INITIALIZERS

GROW = ("tile", "interleave", "keep", "zeros")
SHRINK = ("tile", "interleave", "blocks", "strided", "truncate")
_MAPS: dict[str, type[Map]] = {
    "tile": Tile,
    "interleave": Interleave,
    "blocks": Blocks,
    "strided": Strided,
    "truncate": Offset,
    "keep": Offset,
    "zeros": Offset,
    **dict.fromkeys(INITIALIZERS, Offset),
}
# The only ones whose copies or means get rescaled unless told otherwise, and only along the input.
_RESCALED = ("tile", "interleave", "blocks", "strided")


class Unreachable(ValueError):
    """A size that cannot be reached: the rule and the value of an error's sentence, and a remedy."""

    def __init__(self, rule: str, got: str, remedy: str = "") -> None:
        super().__init__(rule, got, remedy)
        self.rule, self.got, self.remedy = rule, got, remedy


@dataclass(frozen=True)
class Resized:
    """One dimension's change: from ``n`` to ``m`` channels through ``map``. ``how`` is one of the rules' words."""

    n: int
    m: int
    how: str
    map: Map

    @property
    def own(self) -> float:
        """The share of target positions that are the first, or only, ones to show their source's values."""
        return min(self.n, self.m) / self.m

    @property
    def scale(self) -> str:
        """The factor in words: what a copy, or a window's mean, is multiplied by."""
        rescale = self.map.rescaling
        if self.map.averages:
            if rescale == "exact" or (rescale == "uniform" and self.n % self.m == 0):
                return "sum"
            return "mean" if rescale == "none" else f"mean x {self.n}/{self.m}"
        return {"none": "1", "uniform": f"{self.n}/{self.m}", "exact": "1/copies"}[rescale]


def resize(role: str, asked: Channels, n: int) -> Resized | None:
    """The change of a dimension of ``n`` channels that is asked for; None where there is nothing to change.

    ``role`` is ``in_channels`` or ``out_channels``. Growing input channels tiles and shrinking them averages in
    blocks, both keeping the size of the output ("uniform"); shrinking output channels truncates; growing those has
    no default, because new filters are either copies, nothing, or the target's own.
    """
    m = asked.to
    if m == n:
        return None
    how = asked.how or _default(role, n, m)
    if m > n and how not in GROW and how not in INITIALIZERS:
        names = f"{', '.join(map(repr, GROW))} or {OR_AN_INITIALIZER}"
        raise Unreachable(f"be {names} where it grows", f"{how!r} from {n} to {m}")
    if m < n and how not in SHRINK:
        names = f"{', '.join(map(repr, SHRINK[:-1]))} or {SHRINK[-1]!r}"
        raise Unreachable(f"be {names} where it shrinks", f"{how!r} from {n} to {m}")
    rescale = asked.rescale or ("uniform" if role == "in_channels" and how in _RESCALED else "none")
    kind = _MAPS[how]
    if rescale not in kind.rescales:
        names = " or ".join(map(repr, kind.rescales))
        raise Unreachable(f"rescale by {names} where it is {how!r}", repr(rescale))
    chosen = kind(rescale=rescale)  # type: ignore[call-arg]
    misfit = chosen.misfit(n, m)
    if misfit is not None:
        raise Unreachable(misfit, f"size {n} for {m} through {how!r}")
    return Resized(n, m, how, chosen)


def _default(role: str, n: int, m: int) -> str:
    if role == "in_channels":
        return "tile" if m > n else "blocks"
    if m < n:
        return "truncate"
    remedy = f"such as {m}:zeros, {m}:tile, {m}:kaiming_normal, or {m}:keep with a template"
    names = f"{', '.join(map(repr, GROW))} or {OR_AN_INITIALIZER}"
    raise Unreachable(f"say how where it grows ({names})", f"only {m} for {n}", remedy)
