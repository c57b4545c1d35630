"""What the weights of an adapter start from."""
