// AddressSanitizer's options in a fuzzer, which ASAN_OPTIONS overrides. They save half of the time:
// allocations are traced in two frames only, little freed memory is kept, and uses of a stack after
// return are left to `tools/test --sanitize address`.

extern "C" const char* __asan_default_options() {
  return "malloc_context_size=2:quarantine_size_mb=16:detect_stack_use_after_return=0";
}
