# How a plugin is built. Part of find_package(aqsdk).

# aq_add_plugin(NAME SOURCES FILE...): builds the plugin NAME.so, which exports aq_plugin_entry and
# nothing else. It sees the SDK; if all sources are C files, it sees only the C headers.
function(aq_add_plugin name)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  add_library(${name} MODULE ${ARG_SOURCES})
  set(cpp ${ARG_SOURCES})
  list(FILTER cpp EXCLUDE REGEX "\\.c$")
  if(cpp)
    target_link_libraries(${name} PRIVATE aq::sdk)
  else()
    target_link_libraries(${name} PRIVATE aq::abi)
  endif()
  set_target_properties(${name} PROPERTIES PREFIX "" SUFFIX ".so"
    C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  # formats are defined to the last bit, which a fused multiply-add would change
  target_compile_options(${name} PRIVATE -ffp-contract=off)
  # without the version script g++ makes inline statics unique across plugins
  target_link_options(${name} PRIVATE
    LINKER:--version-script=${AQ_EXPORTS_MAP} LINKER:--no-undefined)
  set_property(TARGET ${name} APPEND PROPERTY LINK_DEPENDS ${AQ_EXPORTS_MAP})
endfunction()
