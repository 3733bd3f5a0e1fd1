"""C99 for any compiler: one `step` function, a caller-owned state, constant weights."""
