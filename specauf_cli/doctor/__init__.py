"""Checks for known mistakes that spoil a drafter, run before any training."""
