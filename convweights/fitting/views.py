"""Two shapes side by side: the dimensions of source and target by their roles, groups in a place of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from convweights.fitting.axes import DEPTH, GROUPS, IN, KERNEL, OUT, Axes
from convweights.fitting.sizes import Unreachable


@dataclass(frozen=True)
class Views:
    """``roles`` in order with the source's ``sizes``, and the target's in ``wanted``, None where the rules decide.

    A dimension that one side lacks has size 1 there: a 2D kernel is a 3D one of depth 1. ``groups`` are the source's;
    ``target_roles`` are those that the target's own shape has.
    """

    roles: tuple[str, ...]
    sizes: tuple[int, ...]
    wanted: tuple[int, ...] | None
    groups: int
    target_roles: tuple[str, ...]
    inflates: bool
    deflates: bool
    depthwise: bool

    def pairs(self) -> Iterator[tuple[str, int, int | None]]:
        for position, (role, n) in enumerate(zip(self.roles, self.sizes, strict=True)):
            m = None if self.wanted is None else self.wanted[position]
            yield role, n, 1 if m is None and role not in (*self.target_roles, GROUPS) else m

    def sizes_by_role(self) -> dict[str, int]:
        """The source's sizes."""
        return dict(zip(self.roles, self.sizes, strict=True))

    @property
    def selected(self) -> str:
        """What a selection of output channels picks from: of a depthwise layer its groups, else a group's channels."""
        return GROUPS if GROUPS in self.roles and self.depthwise else OUT

    def per_group(self, role: str, channels: int, *, selects: bool) -> int:
        """A layer's number of channels as that of one group; a selection is one of a group's already."""
        if self.groups == 1 or selects:
            return channels
        if channels % self.groups:
            raise Unreachable(f"be divisible by {self.groups} groups", channels)
        return channels // self.groups

    def shape_of(self, changed: Mapping[str, int]) -> tuple[int, ...]:
        """The target's own shape, groups multiplied in and what it lacks left out."""
        sizes = {**self.sizes_by_role(), **changed}
        shape = [sizes[role] for role in self.target_roles]
        return tuple([sizes[GROUPS] * shape[0], *shape[1:]] if GROUPS in sizes else shape)

    def out_channels(self, changed: Mapping[str, int]) -> tuple[int, int] | None:
        """The layer's output channels before and after."""
        if OUT not in self.roles:
            return None
        sizes = self.sizes_by_role()
        groups = sizes.get(GROUPS, 1)
        return groups * sizes[OUT], changed.get(GROUPS, groups) * changed.get(OUT, sizes[OUT])


def align(source: Axes, shape: tuple[int, ...], target: Axes, wanted: tuple[int, ...] | None) -> Views:
    """The views of both sides. ``wanted`` is the target's shape, None where the rules decide it."""
    for axes, sizes in ((source, shape), (target, wanted)):
        if sizes and sizes[0] % axes.groups:
            raise Unreachable(f"have a first dimension that {axes.groups} groups divide", sizes)
    if wanted is not None and len(target.roles) != len(wanted):
        raise Unreachable("have the rank of the target's", f"{shape} for {wanted}")
    roles, own = source.roles, shape
    new_roles, new = target.roles, wanted
    grouped = source.groups != target.groups or source.groups > 1
    if grouped:
        roles, own = (GROUPS, *roles), (source.groups, shape[0] // source.groups, *shape[1:])
        new_roles = (GROUPS, *new_roles)
        if wanted is not None:
            new = (target.groups, wanted[0] // target.groups, *wanted[1:])
    merged = roles if len(roles) >= len(new_roles) else new_roles
    for side in (roles, new_roles):
        lacking = [role for role in merged if role not in side]
        if [role for role in merged if role in side] != list(side) or not set(lacking) <= set(KERNEL):
            named = f"{', '.join(source.roles)} for {', '.join(target.roles)}"
            raise Unreachable("have the dimensions of the target's", f"{shape}: {named}")
    before = dict(zip(roles, own, strict=True))
    after = None if new is None else dict(zip(new_roles, new, strict=True))
    if (
        after is not None
        and source.groups != target.groups
        and any(before[r] != after[r] for r in (OUT, IN) if r in before)
    ):
        got = f"{source.groups} groups of {shape} for {target.groups} of {wanted}"
        raise Unreachable("have the target's number of groups, or groups of the same size", got)
    return Views(
        merged,
        tuple(before.get(role, 1) for role in merged),
        None if after is None else tuple(after.get(role, 1) for role in merged),
        source.groups if source.groups == target.groups else 1,
        target.roles,
        DEPTH in new_roles and DEPTH not in roles,
        DEPTH in roles and DEPTH not in new_roles,
        source.depthwise or target.depthwise,
    )
