"""An objective is a per-position loss times a detached credit."""
