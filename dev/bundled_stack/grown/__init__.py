"""Train the grown world: one or two objects anywhere on 128x128 pixels, with textures of photos."""
