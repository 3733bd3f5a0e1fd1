"""C, HLS, RTL and GPU sources that generated code is compiled with."""
