"""HLS C++ (Vitis style): exact-width integers, streams, pragmas, a testbench that can fail."""
