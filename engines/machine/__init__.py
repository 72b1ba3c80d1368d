"""The machine itself: what it is, what state it is in, what it lacks, whether its GPU works.

What is measured here stands in every record beside the figures.
"""
