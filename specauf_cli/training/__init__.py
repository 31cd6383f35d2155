"""From a configuration to trained weights, interruptible at any step."""
