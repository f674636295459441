"""The verb *fill*: a value where a mask over filters, channels or elements says so; nothing else is touched.

The schema and the public functions. The pure-torch reference is in fill_reference.py; csrc/ops/fill*.h is the same
meaning in C++.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from convweights.ops import check
from convweights.ops.fill_arguments import Entry, shared_mask, where_of, word_of
from convweights.ops.fill_reference import REFUSED, check_alike, reference_fill_
from convweights.ops.parameters import PLAIN, are_plain, is_quick, resolve
from convweights.ops.targets import Targets
from convweights.ops.update_call import P
from convweights.ops.versions import bump_versions, write

_library = torch.library.Library("convweights", "FRAGMENT")
_library.define(
    "fill_(Tensor(a!)[] weights, Tensor?[] masks, int[] dims, int[] counts, int[] positions, Tensor?[] values, "
    "int[] bits, bool disjoint) -> ()"
)
_operator = torch.ops.convweights.fill_.default


def fill_filters_(
    weight: torch.Tensor,
    mask: torch.Tensor | Sequence[int] | int,
    value: float | torch.Tensor = 0.0,
    *,
    dim: int = 0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write ``value`` into the filters of ``weight`` that ``mask`` names; nothing else is written, or read.

    Equivalent to ``weight[mask] = value`` (``weight[:, mask] = value`` for ``dim=1``) under no_grad for a number.

    Args:
        weight: the tensor written, ``(O, I, kH, kW)`` for instance, of any dtype and strides; returned.
        mask: which filters: a bool tensor with one entry a filter, on the weight's device; or integers, negative ones
            counting from the end (a number, a sequence, or a tensor or array on the host). A bool tensor ``(O, I)``
            names single kernels, with ``dim=0``.
        value: a number; a tensor with one value a filter, ``(O,)``, of which those of the mask are taken; or one that
            broadcasts to the weight.
        dim: what a filter is: 0 is out_channels, 1 in_channels (of a transposed convolution the other way round).
        bias: a tensor with one value a filter, filled by the same mask.

    Raises:
        TypeError, ValueError: a mask, an index or a value that does not fit; nothing has been written.

    >>> import torch, convweights as cw
    >>> cw.fill_filters_(torch.ones(3, 2), [0, -1])
    tensor([[0., 0.],
            [1., 1.],
            [0., 0.]])
    >>> mask = torch.tensor([True, False, True])
    >>> cw.fill_filters_(torch.ones(2, 3), mask, torch.tensor([5.0, 6.0, 7.0]), dim=1)
    tensor([[5., 1., 7.],
            [5., 1., 7.]])
    """
    function = "fill_filters_"
    if bias is None and type(dim) is int and type(weight) in PLAIN and type(mask) is torch.Tensor and mask.ndim == 1:
        fits = 0 <= dim < weight.ndim and mask.shape[0] == weight.shape[dim]
        if fits and _fill_quickly(function, [weight], [mask], [dim], value):
            return weight
    check.writable(function, "weight", weight)
    check.rank(function, "weight", weight)
    dim = check.dimension(function, "dim", dim, weight.ndim)
    where = where_of(function, mask, weight, dim)
    entries = [Entry(weight, *where, *word_of(function, value, weight, dim))]
    if bias is not None:
        entries.append(_bias(function, bias, weight, value, dim, where))
    fill_as(entries)
    return weight


def _bias(
    function: str, bias: torch.Tensor, weight: torch.Tensor, value: Any, dim: int, where: tuple[Any, ...]
) -> Entry:
    check.writable(function, "bias", bias)
    check.same_device(function, "bias", bias, weight)
    if tuple(bias.shape) != (weight.shape[dim],):
        raise ValueError(
            f"{function}: bias must have one value for each of {weight.shape[dim]} filters, "
            f"got shape {tuple(bias.shape)}"
        )
    if check.overlap(bias, weight):
        raise ValueError(f"{function}: bias must not share memory with weight, got views of one storage")
    mask = where[0]
    if mask is not None and mask.ndim > 1:
        raise ValueError(f"{function}: bias must be left out where mask names single kernels, got one")
    if isinstance(value, torch.Tensor) and value.ndim > 1:
        raise ValueError(
            f"{function}: bias must be left out where value has {value.ndim} dimensions, got one; "
            f"pass one value a filter"
        )
    return Entry(bias, mask, 0, where[2], *word_of(function, value, bias, 0, "bias"))


def fill_(params: P, mask: Any, value: float = 0.0, *, frozen: bool = False) -> P:
    """Write ``value`` into the elements of every tensor of ``params`` that ``mask`` names, in one call.

    Equivalent to ``weight.masked_fill_(mask, value)`` under no_grad for each tensor.

    Args:
        params: a tensor; a list; a dict of names; a module, whose parameters are meant. Tied ones are written once;
            parameters that do not require a gradient are skipped, but for one that is given by itself. DTensors are
            filled by masks that are cut alike.
        mask: a bool tensor that broadcasts to the weight's shape: ``(O, 1, 1, 1)`` names filters, ``(O, I, 1, 1)``
            kernels. For a list a list of them or of None, for a dict or a module a dict; what has no mask stays.
        value: a number that every dtype among them can hold.
        frozen: write parameters that do not require a gradient, too; without it a mask for one is an error.

    Returns:
        ``params``.

    Raises:
        TypeError, ValueError: masks that do not fit, unknown names, tensors that overlap; nothing has been written.

    >>> import torch, convweights as cw
    >>> net = torch.nn.Linear(2, 2)
    >>> cw.fill_(net, {"weight": net.weight.abs() < 10.0}, 3.0).weight.tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    function = "fill_"
    if mask is None:
        raise TypeError(f"{function}: mask must be a bool tensor, or a list or dict of them, got None")
    mask = list(mask) if isinstance(mask, Iterator) else mask
    if isinstance(value, torch.Tensor) and value.ndim > 0:
        raise TypeError(
            f"{function}: value must be a number, got a tensor of shape {tuple(value.shape)}; "
            f"call fill_filters_ for one a filter"
        )
    listed: Any = params
    if type(listed) is list and type(mask) is list and len(listed) == len(mask):
        pairs = [(weight, given) for weight, given in zip(listed, mask, strict=True) if given is not None]
        weights, masks = [weight for weight, _ in pairs], [given for _, given in pairs]
        if are_plain(weights) and {torch.Tensor}.issuperset(map(type, masks)):
            dims = [weight.ndim - given.ndim for weight, given in pairs]
            if _fill_quickly(function, weights, masks, dims, value):
                return params
    targets = resolve(function, params, mask=mask, frozen=frozen, draws=False).checked(computed=False)
    _check_masks(targets, mask)
    for part in targets.by_device():
        fill_as(
            [
                Entry(tensor, given, 0, None, *word_of(function, value, tensor, 0))
                for tensor, given in zip(part.tensors, part.masks or [None] * len(part.tensors), strict=True)
                if given is not None
            ],
            part.around,
        )
    return params


def _check_masks(targets: Targets, given: Any) -> None:
    """That a mask was given for none that is skipped, and that no mask is written while it is read."""
    if targets.labels is not None:
        masks = given if isinstance(given, Mapping) else dict(enumerate(given))
        for label in (label for label, mask in masks.items() if mask is not None and label not in targets.labels):
            raise ValueError(
                f"{targets.function}: {targets.argument}[{label!r}] must require a gradient where it has a mask, got a "
                f"frozen parameter; pass frozen=True to write it"
            )
    written = [tensor for tensor in targets.tensors if tensor.element_size() == 1]
    for position, mask in enumerate(targets.masks):
        if mask is not None and any(check.overlap(mask, tensor) for tensor in written):
            raise shared_mask(
                targets.function, "mask" if targets.labels is None else f"mask of {targets.label(position)}"
            )


def _fill_quickly(
    function: str, weights: list[torch.Tensor], masks: list[torch.Tensor], dims: list[int], value: Any
) -> bool:
    """A number into plain tensors, or, where that is not what they are, nothing at all.

    The native kernel finds for itself, and faster, that something is wrong with a weight or a mask; its refusal has
    written nothing, and the checks that follow say what was refused.
    """
    if torch.compiler.is_compiling() or type(value) not in (int, float) or not all(map(is_quick, weights, masks)):
        return False
    one_each = {weight.dtype: weight for weight in weights}
    words = {dtype: word_of(function, value, weight, 0)[1] for dtype, weight in one_each.items()}
    bits = [word for weight in weights for word in words[weight.dtype]]
    none = [None] * len(weights)
    try:
        write(weights, _operator, weights, masks, dims, [-1] * len(weights), [], none, bits, False)
    except RuntimeError as error:
        if REFUSED not in str(error):
            raise
        return False
    return True


def fill_as(entries: Sequence[Entry], around: Iterable[torch.Tensor] = ()) -> None:
    """Write what has been checked; every entry is on one device."""
    if not entries:
        return
    weights = [entry.weight for entry in entries]
    positions = [position for entry in entries for position in entry.positions or ()]
    write(
        (*weights, *around),
        _operator,
        weights,
        [entry.mask for entry in entries],
        [entry.dim for entry in entries],
        [-1 if entry.positions is None else len(entry.positions) for entry in entries],
        positions,
        [entry.values for entry in entries],
        [word for entry in entries for word in entry.bits],
        True,
    )


_library.impl("fill_", reference_fill_, "CompositeExplicitAutograd")
bump_versions(_library, "fill_", _operator, lambda weights, *rest: weights)


@torch.library.register_fake("convweights::fill_")
def _fake_fill_(weights: Sequence[torch.Tensor], *rest: Any) -> None:
    check_alike(weights)
