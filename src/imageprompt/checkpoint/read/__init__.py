"""From a path to stored tensors: safetensors, torch files, shards, checkpoint folders."""
