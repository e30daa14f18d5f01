"""Builds the in-target C library; without a compiler the package still installs and says so at run time."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "moescope.collectors.native._ring",
            sources=["collectors/native/ring.c", "collectors/native/itt.c", "collectors/native/module.c"],
            depends=["collectors/native/ring.h"],
            extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=implicit"],
            extra_link_args=["-ldl", "-lpthread"],
            optional=True,
        )
    ]
)
