// Included before everything else in a wheel for an index (STM_FAST_RELEASE=1): the extension runs with glibc 2.28, as
// manylinux_2_28 demands, wherever it was built. manylinux.cpp does the same for libstdc++; .ci/wheel checks both.
#pragma once

#if defined(__x86_64__)
#define STM_FAST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define STM_FAST_GLIBC "GLIBC_2.17"
#endif

// the first versions of functions to which glibc 2.29 and 2.34 gave new ones
__asm__(".symver exp,exp@" STM_FAST_GLIBC);
__asm__(".symver log,log@" STM_FAST_GLIBC);
__asm__(".symver dlsym,dlsym@" STM_FAST_GLIBC);
