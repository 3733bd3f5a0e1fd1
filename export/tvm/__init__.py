"""Programs as TVM TIR: printed from the loop nests, lowered by a short pipeline, compiled by LLVM or NVRTC.

Importing a module of this package imports TVM, which takes seconds.
"""
