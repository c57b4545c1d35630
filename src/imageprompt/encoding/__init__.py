"""From references to image tokens: pictures or faces, their features, how several are mixed."""
