"""Token files of nanoGPT, llm.c, Megatron and datatrove, read and written."""
