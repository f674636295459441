"""Weights that change with every training step."""
