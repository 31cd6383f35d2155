"""Running serving engines: asked, counted, and held to the exact replay."""
