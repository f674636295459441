"""A checkpoint in, a checkpoint out."""

from convweights.checkpoint.convert import convert
from convweights.checkpoint.errors import CheckpointError
from convweights.checkpoint.plan import plan
from convweights.checkpoint.report import Plan, Report

__all__ = ["CheckpointError", "Plan", "Report", "convert", "plan"]
