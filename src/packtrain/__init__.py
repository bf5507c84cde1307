"""Raw text in, a trained Llama out, with nothing lost."""

__version__ = "0.1.0"
