"""Run models of any layout: a GGUF file with llama.cpp, a checkpoint folder with transformers."""
