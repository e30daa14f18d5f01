"""moescope: a profiler and observability tool for FP8 mixture-of-experts training and inference."""

__version__ = "0.1.0"
