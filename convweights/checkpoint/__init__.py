"""A checkpoint in, a checkpoint out."""

from convweights.checkpoint.batch import convert_all
from convweights.checkpoint.convert import convert
from convweights.checkpoint.plan import plan
from convweights.fitting.errors import CheckpointError
from convweights.fitting.report import Plan, Report

__all__ = ["CheckpointError", "Plan", "Report", "convert", "convert_all", "plan"]
