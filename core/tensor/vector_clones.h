#pragma once

/// Compiles a function of plain loops for several instruction sets, of which one is chosen when the
/// program starts. Not possible with sanitizers: GCC instruments the code that chooses, which the
/// loader calls before the sanitizer is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define AQ_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define AQ_VECTOR_CLONES
#endif
