"""From references (pictures, faces, text) to image prompts."""
