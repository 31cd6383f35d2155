"""Export and import of drafters in public formats."""
