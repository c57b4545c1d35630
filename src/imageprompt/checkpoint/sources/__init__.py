"""One file a container: safetensors, torch's zip and legacy pickles, folders, torch DCP."""
