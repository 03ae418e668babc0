# Calibrating, solving and exporting by the whole program under ThreadSanitizer (the preset "tsan").
# at::parallel_for runs on OpenMP. GCC's libgomp is not instrumented, and ThreadSanitizer would take
# its barriers for nothing. LLVM's libomp offers the same functions, and with its tool Archer it says
# what waits for what, so it is loaded in place of libgomp. Archer's advice to set
# ignore_noninstrumented_modules is not taken: races with what LibTorch copies and frees would be
# missed, and suppressions.txt is enough.
find_file(AQHOST_LIBOMP libomp.so.5 PATHS /usr/lib/llvm-14/lib REQUIRED
  DOC "LLVM's OpenMP library with libarcher.so beside it (Debian: libomp-14-dev)")
get_filename_component(folder ${AQHOST_LIBOMP} DIRECTORY)
find_file(AQHOST_ARCHER libarcher.so PATHS ${folder} NO_DEFAULT_PATH REQUIRED)

# aq_tsan_run(NAME RECIPE [OPTION...]): quantizes olmoe-tiny with four threads.
function(aq_tsan_run name recipe)
  set(out ${PROJECT_BINARY_DIR}/tests/tsan-${name})
  file(WRITE ${out}.yaml "${recipe}\n")
  add_test(NAME "tsan: ${name}" COMMAND aqhost --plugin-dir ${PROJECT_BINARY_DIR}/plugins
    --model ${PROJECT_SOURCE_DIR}/tests/models/olmoe-tiny --config ${out}.yaml --threads 4
    --calib ${PROJECT_SOURCE_DIR}/tests/data/kjv_calib.txt --nsamples 8 --seqlen 64
    --save ${out} --overwrite ${ARGN})
  string(JOIN ":" options halt_on_error=0 exitcode=66 second_deadlock_stack=1
    suppressions=${PROJECT_SOURCE_DIR}/tests/tsan/suppressions.txt)
  set_tests_properties("tsan: ${name}" PROPERTIES TIMEOUT 1200 ENVIRONMENT
    "LD_PRELOAD=${AQHOST_LIBOMP};OMP_TOOL_LIBRARIES=${AQHOST_ARCHER};TSAN_OPTIONS=${options}")
endfunction()

# a race that is there is found: the solver's threads meet in a plugin that counts its calls
aq_add_plugin(tsan_racy SOURCES racy_format.cc)
set_target_properties(tsan_racy PROPERTIES OUTPUT_NAME racy
  LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests/plugins-tsan)
target_compile_definitions(tsan_racy PRIVATE AQ_RACY_CUSTOM)
aq_compile_options(tsan_racy)
add_custom_target(tsan_runs)
add_dependencies(tsan_runs aqhost olmoe int4 int8 mxfp4 nvfp4 tsan_racy)

set(gate "overrides: [{pattern: '*.mlp.gate', skip: true}]")
aq_tsan_run(gptq "default: {wq: int4, group_size: 128}\n${gate}")
aq_tsan_run(gptq_layout "default: {wq: int4, group_size: 128}\n${gate}" --export gptq)
aq_tsan_run(rtn "default: {wq: mxfp4, group_size: 32}\n${gate}" --algorithm rtn)
aq_tsan_run(activations "default: {wq: nvfp4, aq: nvfp4, group_size: 16}\n${gate}" --balance-experts)
aq_tsan_run(refined "default: {wq: int4, group_size: 128, refine: {steps: 2, batch: 1}}\n${gate}")
aq_tsan_run(bfloat16 "default: {wq: int8, aq: int8, group_size: -1}\n${gate}" --dtype bfloat16)
aq_tsan_run(racy "default: {wq: racy, group_size: 128}\n${gate}" --algorithm rtn
  --plugin-dir ${PROJECT_BINARY_DIR}/tests/plugins-tsan)
set_tests_properties("tsan: racy" PROPERTIES
  PASS_REGULAR_EXPRESSION "ThreadSanitizer: data race [^\n]*racy_format.cc:[0-9]+ in quantize")
