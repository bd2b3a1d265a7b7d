# The CUDA backend: nvcc 13, machine code for Hopper (sm_90a) only, which CMake 3.25 does not know;
# nor does it know this nvcc's flag for C++20.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
foreach(kind STANDARD EXTENSION)
  if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
    set(CMAKE_CUDA20_${kind}_COMPILE_OPTION "-std=c++20")
  endif()
endforeach()
find_package(CUDAToolkit 13 REQUIRED)

# Headers that scripts/fetch_cuda_headers puts into a cache folder outside the repository.
if(NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
  set(MIXTRAL_CUDA_CACHE "$ENV{XDG_CACHE_HOME}/mixtral" CACHE PATH "Where fetched headers are")
else()
  set(MIXTRAL_CUDA_CACHE "$ENV{HOME}/.cache/mixtral" CACHE PATH "Where fetched headers are")
endif()
set(MIXTRAL_CUTLASS "${MIXTRAL_CUDA_CACHE}/cutlass-4.2.0.0" CACHE PATH "CUTLASS headers")
set(MIXTRAL_CUDNN_FRONTEND "${MIXTRAL_CUDA_CACHE}/cudnn-frontend-1.32.0" CACHE PATH "cuDNN frontend headers")
foreach(header ${MIXTRAL_CUTLASS}/include/cutlass/cutlass.h ${MIXTRAL_CUDNN_FRONTEND}/include/cudnn_frontend.h)
  if(NOT EXISTS ${header})
    message(FATAL_ERROR "${header} is missing; run scripts/fetch_cuda_headers")
  endif()
endforeach()

add_library(mixtral_cuda_flags INTERFACE)
target_compile_options(mixtral_cuda_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_90a,code=sm_90a
                             --expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall,-Wno-parentheses>
  $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${MIXTRAL_WERROR}>>:--Werror=all-warnings>)
# The CUDA runtime is linked statically; cuBLASLt and cuDNN are opened at run time, so that the
# program also starts where they, or the driver, are missing.
target_include_directories(mixtral_cuda_flags SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(mixtral_cuda_flags INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})
