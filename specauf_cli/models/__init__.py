"""The frozen target and the drafters that imitate it."""
