"""Train the SD3 stack on the finished bundled stack: its autoencoder, its towers and its judge."""
