"""Inside one denoiser call: the step, the guidance layout, and what each attention site adds."""
