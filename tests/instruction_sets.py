"""The instruction sets of the C++ engine, and what they multiply."""

SETS = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2", "portable", "emulated", "emulated_amx")
MULTIPLY_BFLOAT16 = ("amx", "avx512_bf16", "emulated", "emulated_amx")
MULTIPLY_BYTES = (*MULTIPLY_BFLOAT16, "avx512_vnni", "avx_vnni")
# with AMX, convolutions in bfloat16 are left to PyTorch
CONVOLVE_BFLOAT16 = ("avx512_bf16", "emulated")
