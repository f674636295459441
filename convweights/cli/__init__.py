"""The command line: convweights inspect | plan | convert | diff | show | doctor."""

from convweights.cli.commands import app, main

__all__ = ["app", "main"]
