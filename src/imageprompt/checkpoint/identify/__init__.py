"""What an adapter file is: variant, host and base, from tensor names and shapes."""
