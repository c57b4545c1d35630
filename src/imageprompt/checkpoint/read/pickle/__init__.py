"""The torch-free pickle reader: the tensors of a torch file, and no code of it."""
