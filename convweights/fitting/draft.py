"""Decides everything about a transfer from descriptions and rules, before a byte is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from convweights.fitting import sizes
from convweights.fitting.axes import DEPTH, GROUPS, IN, KERNEL, OUT, Axes, of_letters, usual
from convweights.fitting.contents import Contents, TensorInfo
from convweights.fitting.errors import sentence
from convweights.fitting.matching import Asked, collect, collect_new, is_computed
from convweights.fitting.names import going, pair
from convweights.fitting.notes import plan_notes
from convweights.fitting.report import Base, Plan, TensorPlan, describe, dtype_name, renamed_from
from convweights.fitting.rules import Rule
from convweights.fitting.settings import INIT, Layout, Size
from convweights.fitting.sizes import Change, Unreachable
from convweights.fitting.ties import first_names, staying_ties
from convweights.fitting.views import Views, align
from convweights.fitting.words import cast_to, describe_changes, drawn_as, setting_of, settings_of
from convweights.ops import check
from convweights.ops.streams import unwrapped

# Of a normalisation; its bias and running_mean start at 0, as every bias does here.
_STARTS_AT_1 = ("weight", "running_var")


# Settings that leave a tensor's dimensions alone.
_OF_NO_DIMENSION = {"rename", "only", "dtype"}


def draft(
    function: str,
    source: Contents,
    rules: Sequence[Rule],
    template: Contents | None = None,
    dtype: torch.dtype | None = None,
    *,
    strict: bool = True,
    sizes: Mapping[str, Size] | None = None,
    prefix: str | None = "",
) -> Plan:
    """The plan for open contents. With a template its names, shapes and dtypes decide what the target is.

    ``sizes`` are asked of every tensor of which no rule asks for the same. ``prefix`` stands before the names of
    tensors where noise is drawn for them.
    """
    if template is not None and dtype is not None:
        got = f"{dtype_name(dtype)} beside {template.label}"
        raise source.error(sentence(function, "dtype", "be left out where a template decides it", got))
    asked, notes = collect(function, source, rules)
    staying, left_out = going(function, source, asked)
    if not staying and source.tensors:
        got = f"all {len(source.tensors)} of {source.label} dropped"
        raise source.error(sentence(function, "rules", "leave a tensor to be written", got))
    begun = staying if template is None else template.tensors
    anew = collect_new(function, source if template is None else template, begun, rules)
    for to, stays in staying.items():
        others = set(asked[stays.name].settings) - {"rename", "only"}
        if to in anew and others:
            got = f"{', '.join(sorted(others))} of {stays.name} in {source.label}"
            raise source.error(sentence(function, "rules", f"ask for nothing else of {to}, which begins anew", got))
    for each in asked.values():
        for setting, size in (sizes or {}).items():
            each.settings.setdefault(setting, (size, None))
    pairing = pair(function, source, staying, template, anew, strict=strict)
    drafter = _Drafter(function, source, template, dtype, prefix, first_names(source, pairing.target))
    tensors = []
    for name, info in pairing.target.items():
        wanted = None if template is None else template.tensors[name]
        if info is None:
            tensors.append(drafter.anew(name, begun[name], anew.get(name)))
        else:
            tensors.append(drafter.tensor(name, info, asked[info.name], wanted))
    ties = staying_ties(source, template, tensors)
    notes += plan_notes(source, tensors, dtype, ties)
    like = None if template is None else template.label
    return Plan(source.label, "", tuple(tensors), tuple(notes), (*left_out, *pairing.dropped), like, ties)


class _Drafter:
    """Decides one tensor after another. What an error needs to say where it is, it has."""

    def __init__(
        self,
        function: str,
        source: Contents,
        template: Contents | None,
        dtype: torch.dtype | None,
        prefix: str | None,
        first: Mapping[str, str],
    ) -> None:
        self.function, self.source, self.template = function, source, template
        self.dtype, self.prefix, self.first = dtype, prefix, first

    def anew(self, name: str, begun: TensorInfo, asked: Asked | None) -> TensorPlan:
        """A tensor that takes nothing from the source: kept as it is in the template, or initialised."""
        target = TensorInfo(name, begun.shape, begun.dtype, begun.plain, begun.axes)
        size = Size(how="keep") if asked is None else asked.get("new")
        rule = None if asked is None else asked.rule("new")
        if size.how == "keep":
            self._check_template(target)
            return TensorPlan(None, target, base="keep", reads=False, how="kept", new=1.0)
        if size.how == "zeros":
            if not target.plain:
                raise self._error(target, name, "be a dense tensor of whole bytes to be zeroed", describe(target))
            return TensorPlan(None, target, base=0.0, reads=False, how="zeros", new=1.0)
        base = self._initial(target, size, None, rule)
        return TensorPlan(None, target, base=base, reads=False, how=drawn_as(str(size.how), base), new=1.0)

    def tensor(self, name: str, info: TensorInfo, asked: Asked, wanted: TensorInfo | None) -> TensorPlan:
        if wanted is None and asked.settings.keys() <= _OF_NO_DIMENSION:
            return self._of_its_shape(name, info, asked)
        layout: Layout | None = asked.get("layout")
        layout = None if layout is None or layout.source == layout.target else layout
        shape = tuple(info.shape[d] for d in layout.permutation) if layout else info.shape
        views = self._views(info, shape, asked, layout, wanted)
        changes = self._changes(info, asked, views, wanted)
        begins = [change for change in changes if change.role in KERNEL and change.how in INIT]
        dtype = self._dtype(info, asked, wanted)
        target_shape = wanted.shape if wanted else views.shape_of({change.role: change.m for change in changes})
        target = TensorInfo(name, target_shape, dtype, info.plain, wanted.axes if wanted else info.axes)
        base = self._base(target, changes, begins, asked, layout)
        placed = {views.roles.index(change.role): change for change in changes}
        rewritten = bool(changes) or layout is not None or dtype != info.dtype or len(shape) != len(target_shape)
        planned = TensorPlan(
            info,
            target,
            layout.permutation if layout else None,
            views.sizes if rewritten else (),
            tuple(placed[d].m if d in placed else n for d, n in enumerate(views.sizes)) if rewritten else (),
            () if begins else tuple((d, change.n) for d, change in placed.items() if change.map is None),
            {} if begins else {d: change.map for d, change in placed.items() if change.map is not None},
            1.0 if begins else math.prod([change.factor for change in changes]),
            base,
            not begins,
            describe_changes(info, target, layout, changes, base, views),
            "1" if begins else " x ".join(change.scale for change in changes if change.scale != "1") or "1",
            1.0 if begins else 1.0 - math.prod([change.own for change in changes]) if target.nbytes else 0.0,
            views.out_channels({change.role: change.m for change in changes}),
        )
        self._check(planned)
        return planned

    def _of_its_shape(self, name: str, info: TensorInfo, asked: Asked) -> TensorPlan:
        """A tensor of which no dimension changes, as most of a checkpoint's."""
        dtype = self._dtype(info, asked, None)
        target = TensorInfo(name, info.shape, dtype, info.plain, info.axes)
        if dtype == info.dtype:
            return TensorPlan(info, target, how=renamed_from(info, target))
        how = ", ".join(filter(None, (renamed_from(info, target), cast_to(dtype))))
        planned = TensorPlan(info, target, source_view=info.shape, target_view=info.shape, maps={}, how=how)
        self._check(planned)
        return planned

    def _views(
        self, info: TensorInfo, shape: tuple[int, ...], asked: Asked, layout: Layout | None, wanted: TensorInfo | None
    ) -> Views:
        """Both sides' dimensions by their roles, those that one side lacks with size 1."""
        try:
            axes, target = self._axes(info, shape, asked, layout, wanted)
            return align(axes, shape, target, wanted.shape if wanted else None)
        except Unreachable as error:
            argument = f"shape of {info.name}"
            raise self._error(info, argument, error.rule, error.got, error.remedy, asked.rule("groups")) from None

    def _axes(
        self, info: TensorInfo, shape: tuple[int, ...], asked: Asked, layout: Layout | None, wanted: TensorInfo | None
    ) -> tuple[Axes, Axes]:
        rank = len(shape)
        known = of_letters(layout.target) if layout and {"O", "I"} <= set(layout.target) else info.axes
        axes = known or (wanted.axes.of_rank(rank) if wanted and wanted.axes else None) or usual(rank)
        groups, depthwise = asked.get("groups"), axes.depthwise
        if groups is None:
            groups = axes.groups
            if not info.axes and wanted and wanted.axes:
                groups, depthwise = _assumed_groups(shape, wanted), wanted.axes.depthwise
        axes = Axes(axes.roles, groups, depthwise)
        if wanted:
            target = wanted.axes or Axes(axes.of_rank(len(wanted.shape)).roles, groups)
            if "groups" in asked.settings and target.groups == 1:
                target = Axes(target.roles, groups, depthwise)
            return axes, target
        roles = axes.roles
        if "inflate" in asked.settings and DEPTH not in roles:
            roles = axes.of_rank(rank + 1).roles
        if "deflate" in asked.settings and DEPTH in roles:
            roles = axes.of_rank(rank - 1).roles
        return axes, Axes(roles, groups, depthwise)

    def _changes(self, info: TensorInfo, asked: Asked, views: Views, wanted: TensorInfo | None) -> list[Change]:
        changes = []
        for role, n, m in views.pairs():
            setting = setting_of(role, views)
            size: Size | None = asked.get(setting)
            try:
                change = self._change(role, setting, size, n, m, views)
            except Unreachable as error:
                argument, rule = f"{setting} of {info.name}", asked.rule(setting)
                raise self._error(info, argument, error.rule, error.got, error.remedy, rule) from None
            if change is None:
                continue
            if (wanted and wanted.axes is None and self.template and self.template.typed) and not asked.says(setting):
                must = "have the shape of the target's, whose layer's channels are not known"
                remedy = "say in_channels or out_channels in a rule"
                raise self._error(info, info.name, must, f"{info.shape} and {wanted.shape}", remedy)
            changes.append(change)
        return changes

    def _change(self, role: str, setting: str, size: Size | None, n: int, m: int | None, views: Views) -> Change | None:
        """The change of one dimension from ``n``; ``m`` is the template's size, None where there is none."""
        if size is not None and size.how == "select" and setting == OUT and role != views.selected:
            size = None
        to = None if size is None else size.to
        if isinstance(to, tuple):
            extents = [r for r in views.roles if r in KERNEL and setting_of(r, views) == setting]
            if len(to) != len(extents):
                raise Unreachable(f"hold a size for each of {', '.join(extents)}", "x".join(map(str, to)))
            to = to[extents.index(role)]
        if to is not None and role in (OUT, IN) and size is not None:
            to = views.per_group(role, to, selects=size.how == "select")
        if m is None:
            m = n if to is None or role == GROUPS else to
            if to is None and size is not None and role != GROUPS and setting != "deflate":
                raise Unreachable("say how many where there is no template", str(size))
        elif to is not None and to != m and role != GROUPS:
            raise Unreachable(f"agree with the template's {m}", to)
        if role == DEPTH and setting in ("inflate", "deflate"):
            return sizes.depth(size, n, m)
        if role in KERNEL:
            return None if n == m else sizes.kernel(role, size, n, m)
        if role not in (OUT, IN, GROUPS):
            if n != m:
                raise Unreachable("keep the size of a dimension that is neither channels nor kernel", f"{n} and {m}")
            return None
        return sizes.channels(role, size or Size(), n, m, template=self.template is not None)

    def _dtype(self, info: TensorInfo, asked: Asked, wanted: TensorInfo | None) -> torch.dtype:
        own: torch.dtype | None = asked.get("dtype")
        if wanted is None:
            return own or (self.dtype if self.dtype and info.plain and is_computed(info) else info.dtype)
        if own is not None and own != wanted.dtype:
            must, rule = f"agree with the template's {dtype_name(wanted.dtype)}", asked.rule("dtype")
            raise self._error(info, f"dtype of {info.name}", must, dtype_name(own), source=rule)
        if info.dtype != wanted.dtype and not (is_computed(info) and is_computed(wanted)):
            must = f"be of the template's {dtype_name(wanted.dtype)} or convert to it"
            raise self._error(info, info.name, must, dtype_name(info.dtype))
        return wanted.dtype

    def _base(
        self,
        target: TensorInfo,
        changes: Sequence[Change],
        begins: Sequence[Change],
        asked: Asked,
        layout: Layout | None,
    ) -> Base:
        """What is new channels' own, or the whole weight's where its kernel begins anew."""
        bases: dict[Base, str] = {}
        for change in begins[:1] or [change for change in changes if change.map is None]:
            setting = "kernel_size" if begins else settings_of(change.role)
            size, rule = asked.get(setting) or Size(), asked.rule(setting)
            if change.how == "keep":
                bases.setdefault("keep", "keep")
            else:
                bases.setdefault(self._initial(target, size, layout, rule), str(size).partition(":")[2] or change.how)
        if len(bases) > 1:
            must = "fill new channels in one way for both dimensions"
            raise self._error(target, f"how of {target.name}", must, " and ".join(sorted(bases.values())))
        base = next(iter(bases), None)
        if base == "keep":
            self._check_template(target)
        return base

    def _initial(self, target: TensorInfo, size: Size, layout: Layout | None, rule: Rule | None) -> Base:
        """A weight's new values are drawn; of biases and statistics they are what a new layer has."""
        if not is_computed(target):
            must, got = "be float64, float32, float16 or bfloat16 to be initialised", dtype_name(target.dtype)
            raise self._error(target, target.name, must, got, source=rule)
        if len(target.shape) <= 1:
            return 1.0 if target.name.rpartition(".")[2] in _STARTS_AT_1 else 0.0
        if layout is not None and not layout.target.startswith("OI"):
            must = "lead to OI... where channels are initialised, by whose order fans are counted"
            raise self._error(target, f"layout of {target.name}", must, layout, source=rule)
        if self.prefix is None:
            raise ValueError(
                sentence(
                    self.function,
                    "name",
                    "be given where new values are drawn, or every layer would draw the same",
                    None,
                    "pass the layer's, such as name='conv1'",
                )
            )
        # Of tied tensors the first one's name says what is drawn, so that they can stay tied.
        initializer = size.initializer(unwrapped(self.prefix + self.first.get(target.name, target.name)))
        try:
            initializer.checked(self.function, target.shape, target.dtype, f" for {target.name}")
        except (ValueError, TypeError) as error:
            raise self.source.error(str(error), target.name) from None
        return initializer

    def _check_template(self, target: TensorInfo) -> None:
        argument = f"how of {target.name}"
        if self.template is None:
            remedy = "give like=, a checkpoint that has them, or say zeros"
            raise self._error(target, argument, "have values to keep", "keep without a template", remedy)

    def _check(self, planned: TensorPlan) -> None:
        """What the transfer would refuse, refused now."""
        info = planned.source
        assert info is not None
        if not planned.rewritten:
            return
        if not info.plain or info.dtype == getattr(torch, "float4_e2m1fn_x2", None):
            rule = "be a dense tensor of whole bytes to be changed"
            raise self._error(info, info.name, rule, "a sparse, quantised, packed or meta tensor")
        if len(planned.target_view) > check.MAX_DIMENSIONS:
            rule = f"have at most {check.MAX_DIMENSIONS} dimensions to be changed"
            raise self._error(info, info.name, rule, len(info.shape))
        copies = planned.factor == 1.0 and all(
            map.copies(planned.source_view[dim], planned.target_view[dim]) for dim, map in (planned.maps or {}).items()
        )
        if not copies and not is_computed(info):
            rule = "be float64, float32, float16 or bfloat16 to be scaled or averaged"
            remedy = "copies with rescale none are possible"
            raise self._error(info, info.name, rule, dtype_name(info.dtype), remedy)

    def _error(
        self, info: TensorInfo, argument: str, rule: str, got: Any, remedy: str = "", source: Rule | None = None
    ) -> Exception:
        where = f" in {self.source.label}" + (f" by {source.origin}" if source is not None and source.origin else "")
        return self.source.error(sentence(self.function, argument, rule, f"{got}{where}", remedy), info.name)


def _assumed_groups(shape: tuple[int, ...], wanted: TensorInfo) -> int:
    """The groups of a tensor of which only the target is known: as many, or of a depthwise layer as many as fit."""
    assert wanted.axes is not None
    if not wanted.axes.depthwise:
        return wanted.axes.groups
    multiplier = wanted.shape[0] // wanted.axes.groups
    if shape[0] % multiplier:
        raise Unreachable(f"have {multiplier} filters for each channel of a depthwise layer", shape)
    return shape[0] // multiplier
