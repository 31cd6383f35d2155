"""Every setting once, and how yaml and overrides become one ``Config``."""
