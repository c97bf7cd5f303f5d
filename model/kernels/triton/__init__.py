"""The GPU kernels in Triton, imported only on GPUs. Each has its reference one folder up."""
