"""Which samples there are, how they are framed, and in what order they are drawn."""
