"""The integer Program, its meaning, and the ways to obtain one from a float model."""
