"""Public formats of drafters, out and in."""
