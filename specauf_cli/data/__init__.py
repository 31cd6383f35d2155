"""Conversations in, examples and prompts out."""
