"""Decides which formats a model can be exported to: a new one is its files and one line here."""

from packtrain.export import huggingface, verify
from packtrain.export.format import Format
from packtrain.export.gguf import check as gguf_check
from packtrain.export.gguf import write as gguf_write
from packtrain.export.llama2c import check as llama2c_check
from packtrain.export.llama2c import write as llama2c_write

FORMATS = {
    "hf": Format(huggingface.BYTES, huggingface.examine, huggingface.write, verify.check, huggingface.describe),
    "gguf": Format(gguf_write.BYTES, gguf_check.examine, gguf_write.write, gguf_check.check, gguf_write.describe),
    "llama2c": Format(
        llama2c_write.BYTES, llama2c_write.examine, llama2c_write.write, llama2c_check.check, llama2c_write.describe
    ),
}
