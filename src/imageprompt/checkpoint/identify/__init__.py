"""What an adapter file is: variant, host and base, told from tensor names and shapes."""
