"""The float graph on real samples: its values, and the ranges that set the scales."""
