"""Shared by tests of targets and drafters."""

from helpers.drafters import exported, of, tokens

__all__ = ["exported", "of", "tokens"]
