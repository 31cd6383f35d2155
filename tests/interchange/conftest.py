"""Shared by tests of public formats."""

from helpers.drafters import exported, of, target_of, tokens

__all__ = ["exported", "of", "target_of", "tokens"]
