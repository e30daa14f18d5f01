"""An instrumented FP8 mixture-of-experts stack after the DeepSeek-V3 report."""
