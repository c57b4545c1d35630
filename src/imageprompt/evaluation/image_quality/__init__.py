"""Advice on reference pictures: `jpeg` and `blur` measure, `report` draws conclusions."""
