"""Shared by tests of public formats."""

from helpers.drafters import exported, of, tokens

__all__ = ["exported", "of", "tokens"]
