"""Bad input: the type of the error, the whole sentence, and tensors that are as they were. Family: exact."""

import pytest
import torch
from bad_calls_in_place import bad_calls_in_place
from bad_channels import bad_channels
from bad_fills import bad_fills
from bad_input import ErrorInput
from bad_maps import bad_maps
from bad_tensors import bad_tensors
from bad_transfers import bad_transfers
from bad_updates import bad_updates
from bits import assert_same_bits

import convweights as cw

ERROR_INPUTS = [
    *bad_tensors(),
    *bad_transfers(),
    *bad_channels(),
    *bad_calls_in_place(),
    *bad_maps(),
    *bad_updates(),
    *bad_fills(),
]


def has_bits(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    )


def tensors_in(value: object) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, torch.nn.Module):
        value = list(value.parameters())
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    return [value] if has_bits(value) else []


def version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@pytest.mark.parametrize("bad", ERROR_INPUTS, ids=lambda bad: bad.name)
def test_bad_input(device: str, bad: ErrorInput):
    function, arguments, keywords = bad.call(device)
    tensors = tensors_in(arguments)
    before = [(tensor.detach().resolve_conj().clone(), version(tensor)) for tensor in tensors]
    with pytest.raises(bad.error, match=rf"\A{bad.sentence}\Z"):
        function(*arguments, **keywords)
    for tensor, (value, number) in zip(tensors, before, strict=True):
        assert_same_bits(tensor.detach().resolve_conj(), value)
        assert version(tensor) == number


def test_inference_tensors_are_written_in_inference_mode(device: str):
    with torch.inference_mode():
        weight = torch.zeros(2, 4, device=device)
        cw.replicate_channels_(weight, torch.ones(2, 3, device=device))
        assert (weight == 1).all()


def test_names_are_not_repeated():
    names = [bad.name for bad in ERROR_INPUTS]
    assert len(set(names)) == len(names)
