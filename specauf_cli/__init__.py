"""SpecAUF: train, verify and compare block drafters for speculative decoding."""

__version__ = "0.2.0"
