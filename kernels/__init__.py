"""Triton kernels of stm_fast, installed as ``stm_fast.kernels``."""

if __name__ == "kernels":
    raise ImportError("this folder is installed as stm_fast.kernels: import it under that name")
