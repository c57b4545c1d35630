"""Rating by people: a blind page, the answers of its raters, and what they say together."""
