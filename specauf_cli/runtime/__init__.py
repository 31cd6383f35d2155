"""The machine: device, ranks, progress."""
