"""Bytes of files, read and written at places, whole."""

from __future__ import annotations

import os

import torch


def octets(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor of uint8."""
    return tensor.numpy().data


def read_at(descriptor: int, buffer: memoryview, at: int) -> bool:
    """Fill the buffer; whether the file was long enough."""
    while buffer:
        count = os.preadv(descriptor, [buffer], at)
        if not count:
            return False
        buffer, at = buffer[count:], at + count
    return True


def write_at(descriptor: int, buffer: memoryview, at: int) -> None:
    while buffer:
        count = os.pwrite(descriptor, buffer, at)
        buffer, at = buffer[count:], at + count
