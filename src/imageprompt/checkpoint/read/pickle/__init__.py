"""The torch-free pickle reader: finds the tensors of a torch file and runs none of its code."""
