"""Statistics: intervals, paired comparisons, agreement of raters, and strengths from preferences.

Pictures of one prompt are alike, so the unit is a cluster: a prompt with all its seeds.
"""
