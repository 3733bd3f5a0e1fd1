"""Loops over time: rolled up where they were unrolled, taken step by step, and recognised as recurrences."""
