"""Builds the in-target C libraries; without a compiler the package still installs and says so at run time."""

from setuptools import Extension, setup

SOURCES = ("ring", "itt", "module", "cupti", "cupti_clock", "device")
HEADERS = ("ring", "cupti", "cupti_abi", "device")
FLAGS = ["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=implicit"]

setup(
    ext_modules=[
        Extension(
            "moescope.collectors.native._ring",
            sources=[f"collectors/native/{name}.c" for name in SOURCES],
            depends=[f"collectors/native/{name}.h" for name in HEADERS],
            extra_compile_args=FLAGS,
            extra_link_args=["-ldl", "-lpthread"],
            optional=True,
        ),
        # No Python module: the CUDA driver loads it, into whatever process uses CUDA.
        Extension(
            "moescope.collectors.native._injection",
            sources=["collectors/native/injection.c"],
            extra_compile_args=FLAGS,
            extra_link_args=["-ldl"],
            optional=True,
        ),
    ]
)
