"""From one size to another: the defaults of each direction, the map, and what cannot be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convweights.fitting.axes import DEPTH, IN
from convweights.fitting.settings import INIT, OR_AN_INITIALIZER, Size
from convweights.maps import Blocks, Interleave, Map, Offset, Resize, Select, Strided, Tile

GROW = ("tile", "interleave", "keep", "zeros")
SHRINK = ("tile", "interleave", "blocks", "strided", "truncate")
_MAPS: dict[str, type[Map]] = {
    "tile": Tile,
    "interleave": Interleave,
    "blocks": Blocks,
    "strided": Strided,
    "truncate": Offset,
    "zeros": Offset,
}
# The only ones whose copies or means get rescaled unless told otherwise, and only along the input.
_RESCALED = ("tile", "interleave", "blocks", "strided")


class Unreachable(ValueError):
    """A size that cannot be reached: the rule and the value of an error's sentence, and a remedy."""

    def __init__(self, rule: str, got: Any, remedy: str = "") -> None:
        super().__init__(rule, got, remedy)
        self.rule, self.got, self.remedy = rule, got, remedy


@dataclass(frozen=True)
class Change:
    """One dimension's way from size ``n`` to ``m``. ``how`` is one of the rules' words.

    A dimension without a ``map`` keeps its first n positions for the source's; what is beyond them has its values from
    elsewhere: the target's own, or an initialiser's. ``factor`` is what the source's are multiplied by, then.
    """

    role: str
    n: int
    m: int
    how: str
    map: Map | None
    factor: float = 1.0

    @property
    def own(self) -> float:
        """The share of target positions that are the first, or only, ones to show their source's values."""
        if isinstance(self.map, Resize) or self.m == 0:
            return 1.0
        if isinstance(self.map, Select):
            return len({index % self.n for index in self.map.index}) / self.m
        return min(self.n, self.m) / self.m

    @property
    def scale(self) -> str:
        """The factor in words: what a copy, or a window's mean, is multiplied by."""
        if self.map is None:
            return "1" if self.factor == 1.0 else f"{self.n}/{self.m}"
        rescale = self.map.rescaling
        if isinstance(self.map, Resize) or self.m == 0:
            return "1"
        if self.map.averages:
            if rescale == "exact" or (rescale == "uniform" and self.n % self.m == 0):
                return "sum"
            return "mean" if rescale == "none" else f"mean x {self.n}/{self.m}"
        return {"none": "1", "uniform": f"{self.n}/{self.m}", "exact": "1/copies"}[rescale]


def channels(role: str, asked: Size, n: int, m: int, *, template: bool) -> Change | None:
    """The change of a channel dimension from ``n`` to ``m``; None where there is nothing to change.

    ``role`` is ``in_channels``, ``out_channels`` or ``groups``. Growing input channels tiles and shrinking them
    averages in blocks, both keeping the size of the output ("uniform"); shrinking others truncates. Growing those has
    no default without a ``template``, because new filters are either copies, nothing, or the target's own; with one
    the target's own are kept.
    """
    if asked.how == "select":
        return _selected(role, asked, n, m)
    if m == n:
        return None
    how = asked.how or _default(role, n, m, template)
    if m > n and how not in GROW and how not in INIT:
        names = f"{', '.join(map(repr, GROW))} or {OR_AN_INITIALIZER}"
        raise Unreachable(f"be {names} where it grows", f"{how!r} from {n} to {m}")
    if m < n and how not in SHRINK:
        # Of what is only about new channels there is nothing to say where none are new.
        names = f"{', '.join(map(repr, SHRINK[:-1]))} or {SHRINK[-1]!r}"
        raise Unreachable(f"be {names} where it shrinks", f"{how!r} from {n} to {m}")
    rescale = asked.rescale or ("uniform" if role == IN and how in _RESCALED else "none")
    kind = _MAPS.get(how, Offset)
    if rescale not in kind.rescales:
        names = " or ".join(map(repr, kind.rescales))
        raise Unreachable(f"rescale by {names} where it is {how!r}", repr(rescale))
    if how == "keep" or how in INIT:
        return Change(role, n, m, how, None, n / m if rescale == "uniform" else 1.0)
    chosen = kind(rescale=rescale)  # type: ignore[call-arg]
    return Change(role, n, m, how, _fitting(chosen, n, m, how))


def _selected(role: str, asked: Size, n: int, m: int) -> Change | None:
    index = dict(asked.arguments)["select"]
    if m == n and list(index) == list(range(n)):
        return None
    chosen = Select(index, asked.rescale or "none")  # type: ignore[arg-type]
    return Change(role, n, m, f"select {','.join(map(str, index))}", _fitting(chosen, n, m, "select"))


def kernel(role: str, asked: Size | None, n: int, m: int) -> Change:
    """The change of a kernel's extent. From an even size to an odd one and back the centre is rounded down.

    A kernel that is to be initialised has no map: the whole weight is, see :attr:`Change.how`.
    """
    how = None if asked is None else asked.how or ("center" if asked.to is not None else None)
    if how in (None, "error"):
        remedy = "crop or pad it with 'center', interpolate it with 'resize', or begin anew with 'init'"
        raise Unreachable(f"say how where {role} changes", f"{n} and {m}", remedy)
    chosen = {"center": Offset("center"), "resize": Resize()}.get(str(how))
    return Change(role, n, m, str(how), None if chosen is None else _fitting(chosen, n, m, str(how)))


def depth(asked: Size | None, n: int, m: int) -> Change | None:
    """Between a 2D kernel, of depth 1, and a 3D one.

    "mean" gives every slice 1/m of the kernel, and the other way round sums the slices (their mean times their
    number), so that a still video gives what its picture gave; "center" is the slice in the middle.
    """
    if n == m:
        return None
    how = asked.how if asked is not None and asked.how else "mean"
    if how == "center":
        return Change(DEPTH, n, m, how, Offset("center"))
    return Change(DEPTH, n, m, how, Tile("uniform") if m > n else Blocks("uniform"))


def _fitting(chosen: Map, n: int, m: int, how: str) -> Map:
    misfit = chosen.misfit(n, m)
    if misfit is not None:
        raise Unreachable(misfit, f"size {n} for {m} through {how!r}")
    return chosen


def _default(role: str, n: int, m: int, template: bool) -> str:
    if role == IN:
        return "tile" if m > n else "blocks"
    if m < n:
        return "truncate"
    if template:
        return "keep"
    remedy = f"such as {m}:zeros, {m}:tile, {m}:kaiming_normal, or {m}:keep with a template"
    names = f"{', '.join(map(repr, GROW))} or {OR_AN_INITIALIZER}"
    raise Unreachable(f"say how where it grows ({names})", f"only {m} for {n}", remedy)
