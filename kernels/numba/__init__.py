"""The kernels in Python, compiled by numba on first use: the fallback where there is no C library."""
