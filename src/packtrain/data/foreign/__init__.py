"""Token files of nanoGPT, llm.c, Megatron and datatrove. Read `read.py` first."""
