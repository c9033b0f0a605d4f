// What kernel-builder writes into torch-ext/, as far as the bindings use it; for build_kernel.py.
#pragma once

#define CONCAT_(A, B) A##B
#define CONCAT(A, B) CONCAT_(A, B)
#define STRINGIFY_(A) #A
#define STRINGIFY(A) STRINGIFY_(A)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, DEVICE, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, DEVICE, MODULE)
