"""Cases that run the Triton kernels under its interpreter; `test_kernels_interpreted.py` starts them in a process."""
