"""NVIDIA GPUs, through TVM's CUDA source and NVRTC; compiled on any machine, run where there is a device."""
