"""Advice on reference pictures: what is measured (jpeg, blur), and what to make of it (advice)."""
