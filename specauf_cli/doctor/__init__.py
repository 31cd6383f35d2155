"""Checks for what breaks drafters, before a GPU hour is spent."""
