"""Inside one denoiser call: which step it is, which rows, and what each site adds."""
