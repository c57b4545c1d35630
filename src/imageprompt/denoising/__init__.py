"""What happens inside a denoiser's call: which step it is, which rows, and what each site adds."""
