"""The CPU of this machine, through TVM and LLVM."""
