"""Triton kernels of the operations, imported only when they are used (Triton comes with CUDA builds of PyTorch)."""
