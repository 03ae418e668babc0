#pragma once

// doctest and c10 both define CHECK; ours is doctest's.
#include <ATen/ATen.h>

#undef CHECK

#include <doctest/doctest.h>

#undef CHECK
#define CHECK(...) DOCTEST_CHECK(__VA_ARGS__)
