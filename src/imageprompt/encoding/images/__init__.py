"""Opening pictures safely, framing them, and the noise of negative image prompts."""
