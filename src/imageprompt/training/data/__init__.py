"""Which samples there are, how they are cropped, and in what order they are drawn."""
