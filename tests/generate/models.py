"""Decides the small models that the tests of generation continue texts with."""

import itertools

import torch

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.generate.prompt import encode_prompt
from packtrain.model.init import build
from packtrain.model.llama import Llama

from ..model.tiny import tiny


def tiny_model(vocab_size: int, seed: int = 0, **changes) -> Llama:
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 64}
    shape |= {"initializer_range": 0.2, "max_position_embeddings": None}
    return build(tiny(vocab_size=vocab_size, **(shape | changes)), seed=seed)


def scripted_model(tokenizer: Tokenizer, *token_ids: int) -> Llama:
    """A Llama that continues each of `token_ids` with the next: its blocks add nothing to a one-hot code."""
    size = tokenizer.vocab_size
    model = tiny_model(size, hidden_size=size + size % 2, head_dim=2, tie_word_embeddings=False, num_hidden_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight.fill_diagonal_(1.0)
        for now, after in itertools.pairwise(token_ids):
            assert not model.lm_head.weight[:, now].any(), "each token has one successor"
            model.lm_head.weight[after, now] = 1.0
    return model


def saying(tokenizer: Tokenizer, prompt: str, text: str) -> Llama:
    """A model that continues `prompt` with `text` and then ends."""
    return scripted_model(
        tokenizer, encode_prompt(tokenizer, prompt, True)[-1], *tokenizer.encode(text), tokenizer.eos_id
    )


def theirs_of(model: Llama, tokenizer: Tokenizer):
    """Hugging Face's model with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            intermediate_size=config.intermediate_size,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
        )
    )
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs.eval()
