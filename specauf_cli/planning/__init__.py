"""What a training will take: counted, calibrated on this machine."""
