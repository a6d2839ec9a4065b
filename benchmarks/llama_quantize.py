"""llama-quantize through llama-cpp-python, in a separate process: SOURCE TARGET FILE_TYPE_NUMBER THREADS."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

if __name__ == "__main__":
    source, target, number, threads = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = int(number), int(threads)
    sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))
