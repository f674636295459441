"""A whole model's weights from another model, or from a state dict."""

from __future__ import annotations

import dataclasses

from torch import nn

from convweights.fitting.draft import draft
from convweights.fitting.errors import sentence
from convweights.fitting.modules import State, contents_of
from convweights.fitting.report import Report
from convweights.fitting.rules import Rules, load_rules
from convweights.layers.write import write


def transfer_model_(target: nn.Module, source: State, *, rules: Rules = None, strict: bool = True) -> Report:
    """Write the weights of ``source`` into ``target``, matched by name, each fitted to the target's shape and dtype.

    What a layer is, convolution or transposed, grouped or not, is read off the modules. Input channels that grow are
    tiled and those that shrink averaged in blocks, both rescaled "uniform"; output channels that shrink are
    truncated, and those that grow keep the target's own values; a 2D kernel is inflated to a 3D one, and back, by
    "mean"; the sizes of kernels have to agree. Rules say otherwise, for the names they match. The report
    lists each tensor that is not a plain copy.

    Parameters keep their identity, so an optimizer that holds them goes on; they keep requires_grad, device and
    dtype, too. Autograd does not see the change, but a backward over a graph that saved old values raises.

    Args:
        target: the module written. On the meta device nothing is, and the report is a plan.
        source: a module, or a dict of names and tensors such as a state dict.
        rules: as for :func:`~convweights.plan`; they name the source's tensors, those that say ``new`` the target's.
        strict: tensors found on one side only are an error; else the source's are dropped, the target's stay as they
            are, and the report says so.

    Raises:
        TypeError, ValueError: names or shapes that cannot be brought together; nothing has been written.

    >>> import torch, convweights as cw
    >>> rgb = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    >>> gray = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    >>> report = cw.transfer_model_(gray, rgb)
    >>> [(tensor.name, tensor.how, tensor.scale) for tensor in report.changed]
    [('0.weight', 'in_channels 3 -> 1 blocks', 'sum')]
    """
    function = "transfer_model_"
    if not isinstance(target, nn.Module):
        raise TypeError(sentence(function, "target", "be a torch.nn.Module", type(target).__name__))
    if not isinstance(strict, bool):
        raise TypeError(sentence(function, "strict", "be True or False", repr(strict)))
    parsed = load_rules(function, rules)
    to, values = contents_of(function, "target", target), contents_of(function, "source", source)
    planned = draft(function, values, parsed, to, strict=strict)
    planned = dataclasses.replace(planned, source_format=values.format)
    return write(function, planned, values, to)
