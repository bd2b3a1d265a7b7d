# One static library a folder of src/. `mixtral_layer(nn ops)` makes mixtral_nn from src/nn/*.cc,
# linked to mixtral_ops; what a folder links is what it may include (scripts/check_includes).
add_library(mixtral_flags INTERFACE)
target_include_directories(mixtral_flags INTERFACE ${PROJECT_SOURCE_DIR}/src)
# Contraction is off so that a multiply-add is fused only where the code says so: results then do
# not depend on the compiler's choices.
target_compile_options(mixtral_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers
                              -ffp-contract=off>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${MIXTRAL_WERROR}>>:-Werror>)
# libstdc++ 12's std::stable_sort uses what clang 19 knows as deprecated.
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  # Warns of every function that takes a text and returns a reference to something else.
  target_compile_options(mixtral_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-dangling-reference>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # The compiler collects its garbage rarely: a seventh less time for 100 MB.
  target_compile_options(mixtral_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:--param=ggc-min-expand=100;--param=ggc-min-heapsize=500000>")
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(mixtral_flags INTERFACE -Wno-deprecated-declarations)
endif()
if(MIXTRAL_SANITIZE)
  target_compile_options(mixtral_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${MIXTRAL_SANITIZE} -fno-omit-frame-pointer
                              -fno-sanitize-recover=all>)
  target_link_options(mixtral_flags INTERFACE -fsanitize=${MIXTRAL_SANITIZE})
endif()

function(mixtral_layer name)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cc)
  if(NOT sources)
    add_library(mixtral_${name} INTERFACE)
    set(scope INTERFACE)
  else()
    add_library(mixtral_${name} STATIC ${sources})
    set(scope PUBLIC)
  endif()
  target_link_libraries(mixtral_${name} ${scope} mixtral_flags)
  foreach(dependency ${ARGN})
    if(TARGET mixtral_${dependency})
      target_link_libraries(mixtral_${name} ${scope} mixtral_${dependency})
    else()
      target_link_libraries(mixtral_${name} ${scope} ${dependency})
    endif()
  endforeach()
endfunction()

set(MIXTRAL_COMMON_HEADERS <algorithm> <cmath> <cstdint> <filesystem> <functional> <map> <memory> <optional>
  <span> <string> <string_view> <utility> <vector> <fmt/format.h> <fmt/ranges.h>)

# mixtral_precompile(LAYER OWNER HEADER...): the layer's files start from precompiled headers, which are
# compiled once, for the layer OWNER. Both must be compiled with the same macros and flags.
function(mixtral_precompile layer owner)
  get_target_property(type mixtral_${layer} TYPE)
  if(NOT MIXTRAL_PRECOMPILE OR type STREQUAL "INTERFACE_LIBRARY")
    return()
  endif()
  if(layer STREQUAL owner)
    target_precompile_headers(mixtral_${layer} PRIVATE ${ARGN})
  else()
    target_precompile_headers(mixtral_${layer} REUSE_FROM mixtral_${owner})
  endif()
endfunction()

# mixtral_unite(LAYER): the layer's files are compiled MIXTRAL_UNITY at a time, so that headers and templates are
# read and instantiated once for all of them. Names in anonymous namespaces must then differ within a layer.
function(mixtral_unite layer)
  get_target_property(type mixtral_${layer} TYPE)
  if(MIXTRAL_UNITY GREATER 1 AND NOT type STREQUAL "INTERFACE_LIBRARY")
    set_target_properties(mixtral_${layer} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${MIXTRAL_UNITY})
    # g++ takes what is included for a header, where a member's type from an anonymous namespace would be a mistake.
    target_compile_options(mixtral_${layer} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  endif()
endfunction()

# Not optimized in any build: for tests, which compile in half the time and spend theirs in the layers.
function(mixtral_compile_quickly target)
  target_compile_options(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O0>)
endfunction()

# mixtral_optimize(TARGET FLAG): another level than the build type's, where speed of compilation counts for more.
function(mixtral_optimize target flag)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "INTERFACE_LIBRARY")
    return()
  endif()
  if(MIXTRAL_QUICK_BUILD)
    set(flag -O0)
  endif()
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:${flag}>)
endfunction()
