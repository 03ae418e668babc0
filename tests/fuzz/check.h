#pragma once

#include <cstdlib>

/// What must hold of any input; in every kind of build.
inline void check(bool holds) {
  if (!holds) std::abort();
}
