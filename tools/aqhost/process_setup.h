#pragma once

namespace aqhost {

/// Prepares the process for a run: the allocator, the limit of open files, the handlers of signals
/// and the log on stderr. main() calls it before anything else.
///
/// A part of the setup must be done before the shared libraries initialize themselves, so
/// process_setup.cc registers it with the dynamic linker: signals are held back until this function
/// is called, a deleted current folder ends the program, and the program starts itself again with
/// an environment that limits how long OpenMP's threads spin.
void set_up_process();

/// Flushes the C streams and ends the process without running any destructor: LibTorch's take
/// 30 ms, and nothing needs them.
[[noreturn]] void end_process(int status);

}  // namespace aqhost
