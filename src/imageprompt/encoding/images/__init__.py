"""Pictures: opened safely, framed for an encoder, and noised for negative image prompts."""
