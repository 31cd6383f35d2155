"""Whole tables: their jobs, who runs them, what is published and rendered."""
