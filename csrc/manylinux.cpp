// In a wheel for an index: what newer headers need of libstdc++ and glibc, and those of manylinux_2_28 lack.
#if defined(STM_FAST_RELEASE)

#include <sstream>

// has members since GCC 9 and 11; the linker would find those that libc10 exports by accident
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

// of glibc 2.32, read by headers of libstdc++: the process may have threads
extern "C" {
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}

#endif
