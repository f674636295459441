"""The line that a converted checkpoint carries: what it was made of, by which rules, by which version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch

import convweights
from convweights.checkpoint.contents import Checkpoint
from convweights.fitting.report import dtype_name
from convweights.fitting.rules import Rule

KEY = "convweights"


def with_provenance(
    source: Checkpoint, rules: Iterable[Rule], like: str | None, dtype: torch.dtype | None
) -> Mapping[str, str]:
    """The source's metadata and one more line; those of earlier conversions stay above it.

    The digest is of the names, dtypes and shapes of the source's tensors, and not of their values: those would have to
    be read twice.
    """
    described = [[info.name, dtype_name(info.dtype), list(info.shape)] for info in source.tensors.values()]
    digest = hashlib.sha256(json.dumps(described, separators=(",", ":")).encode(errors="surrogatepass")).hexdigest()
    line: dict[str, object] = {"version": convweights.__version__, "source": source.path.name, "tensors_sha256": digest}
    line["rules"] = [rule.as_dict() for rule in rules]
    if like is not None:
        line["like"] = like
    if dtype is not None:
        line["dtype"] = dtype_name(dtype)
    earlier = source.around.metadata.get(KEY)
    text = json.dumps(line, separators=(",", ":"))
    return {**source.around.metadata, KEY: text if earlier is None else f"{earlier}\n{text}"}
