"""Fused in-place kernels that change the weights of neural networks."""

from convweights.maps import (
    Blocks,
    Center,
    Identity,
    Interleave,
    Map,
    Mean,
    Offset,
    Pad,
    Resize,
    Select,
    Strided,
    Tile,
    Truncate,
)
from convweights.ops.channels import (
    average_channels,
    average_channels_,
    replicate_channels,
    replicate_channels_,
    truncate_channels,
    truncate_channels_,
)
from convweights.ops.transfer import transfer_

from convweights.checkpoint import CheckpointError, Plan, Report, convert, plan

# The schemas are defined by now, so the native kernels can take over from the reference.
from convweights import native  # isort: skip

_C = native.load()

__version__ = "0.1.0"
