"""Measuring drafters on running serving engines, and starting those engines."""
