"""A model as a GGUF file, for llama.cpp and Ollama. Read `write.py` first; `check.py` asks llama.cpp for its numbers."""
