"""Fused in-place kernels that change the weights of neural networks."""

from convweights import init, native
from convweights.checkpoint import CheckpointError, Plan, Report, convert, convert_all, plan
from convweights.layers.adapt import adapt_layer
from convweights.layers.assign import assign_
from convweights.layers.filters import set_kernel_, zero_filters_, zero_input_channels_
from convweights.layers.layer import transfer_layer_
from convweights.layers.model import transfer_model_
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
from convweights.masks import FilterMask
from convweights.ops.channels import (
    average_channels,
    average_channels_,
    replicate_channels,
    replicate_channels_,
    truncate_channels,
    truncate_channels_,
)
from convweights.ops.fill import fill_, fill_filters_
from convweights.ops.transfer import transfer_
from convweights.ops.update import accumulate_noise_, noise, perturb_, update_
from convweights.steps.hook import PerturbHook
from convweights.steps.perturbed import perturbed

__version__ = "0.1.0"

__all__ = [
    "Blocks",
    "Center",
    "CheckpointError",
    "FilterMask",
    "Identity",
    "Interleave",
    "Map",
    "Mean",
    "Offset",
    "Pad",
    "PerturbHook",
    "Plan",
    "Report",
    "Resize",
    "Select",
    "Strided",
    "Tile",
    "Truncate",
    "accumulate_noise_",
    "adapt_layer",
    "assign_",
    "average_channels",
    "average_channels_",
    "convert",
    "convert_all",
    "fill_",
    "fill_filters_",
    "init",
    "native",
    "noise",
    "perturb_",
    "perturbed",
    "plan",
    "replicate_channels",
    "replicate_channels_",
    "set_kernel_",
    "transfer_",
    "transfer_layer_",
    "transfer_model_",
    "truncate_channels",
    "truncate_channels_",
    "update_",
    "zero_filters_",
    "zero_input_channels_",
]
