# find_package(coppice) gives the target coppice::kernels.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/coppiceTargets.cmake)
