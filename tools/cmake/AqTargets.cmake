# How this project's targets are made, in one place.

function(aq_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow
    # no fused multiply-add behind our back: formats are defined to the bit
    -ffp-contract=off
    # LibTorch's checks name the file that they are in, which need not have the folder of this machine
    -fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=
    $<$<COMPILE_LANGUAGE:CXX>:-Wconversion>
    # GCC 12 sees overlaps and overflows in std::string that are not there (its bug 105651)
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> $<$<CXX_COMPILER_ID:GNU>:-Wno-stringop-overflow>
    $<$<CXX_COMPILER_ID:GNU>:-Wno-array-bounds>)
  if(CMAKE_UNITY_BUILD)  # it takes the sources that one file includes for headers
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
  endif()
  if(AQHOST_DEVELOPER)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(AQHOST_SANITIZE)
    # GCC takes instrumented code of its own std::function for uninitialized. Boost and spdlog have
    # fences, which ThreadSanitizer does not follow; nothing here depends on them.
    target_compile_options(${target} PRIVATE -fsanitize=${AQHOST_SANITIZE}
      -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1
      $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
    target_compile_definitions(${target} PRIVATE _GLIBCXX_ASSERTIONS)
    target_link_options(${target} PRIVATE -fsanitize=${AQHOST_SANITIZE})
  endif()
  if(AQHOST_FUZZ)
    # Line numbers take a fifth of the compiler's time. Reports name the functions without them, and
    # the same programs in the preset asan, which replay an input, have them.
    target_compile_options(${target} PRIVATE -O1 -g0 -fsanitize=fuzzer-no-link
      -fsanitize-coverage-ignorelist=${PROJECT_SOURCE_DIR}/tests/fuzz/libraries.txt)
  endif()
endfunction()

# What the precompiled headers below have.
set(AQ_STANDARD_HEADERS <algorithm> <array> <cmath> <cstdint> <filesystem> <functional> <map> <memory>
  <optional> <set> <span> <string> <string_view> <unordered_map> <utility> <vector>
  ${CMAKE_CURRENT_LIST_DIR}/json_templates.h)

# aq_precompiled(TARGET FROM): compiles TARGET with the precompiled header of the target FROM, which
# has the same options: aqhost_base has the standard library, nlohmann/json and fmt, aqhost_tensor has
# ATen as well. Reading these takes 2 s and 8 s in each file without it.
function(aq_precompiled target from)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE)  # -fPIC as the libraries: GCC shares the header between equal modes
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
  target_precompile_headers(${target} REUSE_FROM ${from})
endfunction()

# aq_plugin_precompiled(TARGET): the same with the precompiled header of the plugins, which has the
# standard library and nlohmann/json, for a plugin or a test that sees nothing but the SDK.
function(aq_plugin_precompiled target)
  aq_precompiled(${target} aq_plugin_headers)
  target_link_libraries(${target} PRIVATE aq_json_templates)
endfunction()

# aq_compile_quickly(TARGET): for code that a run spends no time in. The optimizer takes two thirds of
# the time of a file that handles JSON or options.
function(aq_compile_quickly target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# aq_core_library(NAME [ATEN] SOURCES a.cc ... [DEPS targets]): core/NAME as a static library aqhost_NAME.
# ATEN: it includes LibTorch's headers.
# A file sees only its own module and those it names, so a wrong #include does not build.
function(aq_core_library name)
  cmake_parse_arguments(ARG "ATEN" "" "SOURCES;DEPS" ${ARGN})
  add_library(aqhost_${name} STATIC ${ARG_SOURCES})
  # #include "NAME/x.h" works through a folder that holds nothing but a link to this module
  set(view ${PROJECT_BINARY_DIR}/include/${name})
  file(MAKE_DIRECTORY ${view})
  file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR} ${view}/${name} SYMBOLIC)
  target_include_directories(aqhost_${name} PUBLIC ${view})
  target_link_libraries(aqhost_${name} PUBLIC ${ARG_DEPS})
  aq_compile_options(aqhost_${name})
  if(ARG_ATEN)
    set(precompiled aqhost_tensor)
  else()
    set(precompiled aqhost_base)
  endif()
  if(NOT precompiled STREQUAL aqhost_${name})
    aq_precompiled(aqhost_${name} ${precompiled})
  endif()
endfunction()

# aq_plain_loops(a.cc ...): sources of plain loops that are to vectorize. Neither option changes a
# result, unlike -ffast-math.
function(aq_plain_loops)
  set_source_files_properties(${ARGN} PROPERTIES
    COMPILE_OPTIONS "-O3;-fno-math-errno;-fno-trapping-math" SKIP_PRECOMPILE_HEADERS ON)
endfunction()

# aq_plugin(NAME SOURCES ...): a plugin of this project, made as everyone's is (aq_add_plugin).
set(AQ_EXPORTS_MAP ${PROJECT_SOURCE_DIR}/sdk/exports.map)
include(${PROJECT_SOURCE_DIR}/sdk/cmake/AqPlugin.cmake)
function(aq_plugin name)
  aq_add_plugin(${name} ${ARGN})
  set_target_properties(${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/plugins)
  aq_compile_options(${name})
  if(AQHOST_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    target_link_options(${name} PRIVATE LINKER:-z,undefs)  # the program has clang's sanitizers
  endif()
endfunction()

# Seconds that a test may take; sanitizers make it several times slower.
set(AQ_TEST_TIMEOUT 600)
if(AQHOST_SANITIZE)
  set(AQ_TEST_TIMEOUT 3000)
endif()

# Tests run beside each other, so OpenMP's threads must not spin while they wait: a test of learned
# rounding took 39 s of processor time, and takes 1 s. Even the short spinning that aqhost chooses
# (tools/aqhost/process_setup.cc) takes a fifth of the processor time of a run on a small model.
set(AQ_TEST_ENVIRONMENT OMP_WAIT_POLICY=passive)

# aq_test(MODULE [ATEN] SOURCES ... [DEPS targets]): doctest cases of core/MODULE. Each source X_test.cc
# is the ctest test "MODULE: X", which runs all its cases in one process: a process per case would
# spend most of its time on starting LibTorch. The tests run in the source tree's tests/ folder.
# ATEN: they include LibTorch's headers.
function(aq_test module)
  cmake_parse_arguments(ARG "ATEN" "" "SOURCES;DEPS" ${ARGN})
  add_executable(test_${module} ${ARG_SOURCES})
  target_include_directories(test_${module} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(test_${module} PRIVATE ${ARG_DEPS} aq_doctest_main)
  target_compile_definitions(test_${module} PRIVATE
    AQ_TESTS_DIR="${PROJECT_SOURCE_DIR}/tests" AQ_BUILD_DIR="${PROJECT_BINARY_DIR}")
  aq_compile_options(test_${module})
  aq_compile_quickly(test_${module})
  if(ARG_ATEN)
    aq_precompiled(test_${module} aqhost_tensor)
  elseif(module STREQUAL sdk)  # it sees the SDK alone
    set_target_properties(test_sdk PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    aq_plugin_precompiled(test_sdk)
  elseif(NOT module STREQUAL formats)  # this one is compiled for OpenMP
    aq_precompiled(test_${module} aqhost_base)
  endif()
  list(FILTER ARG_SOURCES INCLUDE REGEX "_test\\.cc$")
  foreach(source ${ARG_SOURCES})
    get_filename_component(file ${source} NAME)
    string(REPLACE "_test.cc" "" name ${file})
    add_test(NAME "${module}: ${name}" COMMAND test_${module} --source-file=*/${file}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}/tests)
    set_tests_properties("${module}: ${name}" PROPERTIES TIMEOUT ${AQ_TEST_TIMEOUT}
      ENVIRONMENT ${AQ_TEST_ENVIRONMENT} FAIL_REGULAR_EXPRESSION "test cases: +0 ")
  endforeach()
endfunction()

# aq_python_test(NAME SCRIPT PYTHON): a file of Python unittests as one ctest test, run with AQ_BUILD
# set to the build folder. These tests take long, so they begin first (COST), and the short tests of
# C++ keep all cores busy at the end.
function(aq_python_test name script python)
  add_test(NAME ${name} COMMAND ${python} ${CMAKE_CURRENT_SOURCE_DIR}/${script} -v
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}/tests)
  math(EXPR timeout "2 * ${AQ_TEST_TIMEOUT}")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout} COST 100
    ENVIRONMENT
    "AQ_BUILD=${PROJECT_BINARY_DIR};AQ_SANITIZE=${AQHOST_SANITIZE};PYTHONDONTWRITEBYTECODE=1;${AQ_TEST_ENVIRONMENT}")
endfunction()
