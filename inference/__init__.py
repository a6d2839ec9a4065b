"""Models that can be run, whatever their layout: logits of a GGUF file by llama.cpp, of a folder by transformers."""
