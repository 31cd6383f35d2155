"""Memory, disk and time of a training, counted and calibrated on this machine."""
