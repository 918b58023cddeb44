# PyTorch's libraries as targets, for our own build and for programs that use the installed package.
#
# find_package(Torch) is not used: with a CUDA build of torch it demands the CUDA toolkit even of programs
# that compile no CUDA, forces libtorch_cuda into every link, and rewrites the CUDA flags. Only torch's
# headers and a few of its libraries are needed.
#
# TORCH_EXT_TORCH_ROOT  torch's root (site-packages/torch, or an unpacked LibTorch); searched in
#                       CMAKE_PREFIX_PATH unless set, from torch.utils.cmake_prefix_path too
# Defines               torch_ext_torch_headers, torch_ext_torch, and torch_ext_torch_cuda where torch has CUDA;
#                       torch_ext::aot_inductor, for programs that run packages of AOTInductor;
#                       TORCH_EXT_TORCH_MINOR ("2.15"), TORCH_EXT_TORCH_PROBLEM (empty when found)

set(TORCH_EXT_TORCH_PROBLEM "")
set(TORCH_EXT_TORCH_MINOR "")
# (torch.utils.cmake_prefix_path is share/cmake; Torch_DIR is share/cmake/Torch.)
find_path(TORCH_EXT_TORCH_ROOT NAMES include/ATen/core/Tensor.h PATH_SUFFIXES . ../.. ../../.. NO_DEFAULT_PATH
  PATHS ${CMAKE_PREFIX_PATH} ${Torch_DIR} ENV CMAKE_PREFIX_PATH)
if(NOT TORCH_EXT_TORCH_ROOT)
  set(TORCH_EXT_TORCH_PROBLEM "PyTorch was not found: add its folder (site-packages/torch) to CMAKE_PREFIX_PATH.")
else()
  get_filename_component(TORCH_EXT_TORCH_ROOT "${TORCH_EXT_TORCH_ROOT}" ABSOLUTE)  # without the suffix's dots
  set(version_header ${TORCH_EXT_TORCH_ROOT}/include/torch/headeronly/version.h)
  if(NOT EXISTS ${version_header})  # the place in older versions; in newer ones this header includes the other
    set(version_header ${TORCH_EXT_TORCH_ROOT}/include/torch/csrc/api/include/torch/version.h)
  endif()
  set(version_lines "")
  if(EXISTS ${version_header})
    file(STRINGS ${version_header} version_lines REGEX "define TORCH_VERSION_(MAJOR|MINOR) [0-9]")
  endif()
  if(version_lines MATCHES "MAJOR ([0-9]+).*MINOR ([0-9]+)")
    set(TORCH_EXT_TORCH_MINOR ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
  else()
    set(TORCH_EXT_TORCH_PROBLEM
      "${TORCH_EXT_TORCH_ROOT} is no PyTorch: it has no version.h (expected is <site-packages>/torch).")
  endif()
endif()

if(TORCH_EXT_TORCH_ROOT AND NOT TARGET torch_ext_torch)
  add_library(torch_ext_torch_headers INTERFACE IMPORTED GLOBAL)
  target_include_directories(torch_ext_torch_headers SYSTEM INTERFACE
    ${TORCH_EXT_TORCH_ROOT}/include ${TORCH_EXT_TORCH_ROOT}/include/torch/csrc/api/include)
  target_compile_features(torch_ext_torch_headers INTERFACE cxx_std_20)

  # A CUDA torch needs libraries (NCCL, cuDNN) that a linker searches in the wrong places; they are found
  # when the program starts, through torch's own RPATH.
  add_library(torch_ext_torch INTERFACE IMPORTED GLOBAL)
  target_link_libraries(torch_ext_torch INTERFACE torch_ext_torch_headers
    ${TORCH_EXT_TORCH_ROOT}/lib/libtorch_cpu.so ${TORCH_EXT_TORCH_ROOT}/lib/libc10.so)
  target_link_options(torch_ext_torch INTERFACE LINKER:--allow-shlib-undefined)

  # A package of AOTInductor requires libtorch.so, which only refers to all of torch's libraries. With a
  # CUDA torch that is all of CUDA, so only programs that ask for it get it.
  add_library(torch_ext::aot_inductor INTERFACE IMPORTED GLOBAL)
  target_link_libraries(torch_ext::aot_inductor INTERFACE torch_ext_torch)
  target_link_options(torch_ext::aot_inductor INTERFACE
    LINKER:--push-state,--no-as-needed,${TORCH_EXT_TORCH_ROOT}/lib/libtorch.so,--pop-state)

  if(EXISTS ${TORCH_EXT_TORCH_ROOT}/lib/libtorch_cuda.so)
    # libtorch_cuda is linked although no symbol of it is used: without it a C++ program has no CUDA tensors.
    add_library(torch_ext_torch_cuda INTERFACE IMPORTED GLOBAL)
    target_link_libraries(torch_ext_torch_cuda INTERFACE torch_ext_torch ${TORCH_EXT_TORCH_ROOT}/lib/libc10_cuda.so)
    target_link_options(torch_ext_torch_cuda INTERFACE
      LINKER:--push-state,--no-as-needed,${TORCH_EXT_TORCH_ROOT}/lib/libtorch_cuda.so,--pop-state)
  endif()
endif()
