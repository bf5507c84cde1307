"""Decides which token ids a prompt is, and which part of it is read if it is longer than the model's context."""

from collections.abc import Sequence

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError, UserError
from packtrain.generate.settings import GenerateSettings


def encode_prompt(tokenizer: Tokenizer, prompt: str, add_bos: bool) -> list[int]:
    """Token ids of a prompt, after the begin-of-text token if `add_bos`. Raises UserError if there are none."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not valid UTF-8; give it in that encoding") from None
    if add_bos and tokenizer.bos_id is None:
        raise TokenizerError(
            "the dataset has a begin-of-text token before each document, but this tokenizer has no such token; give the "
            "dataset's tokenizer"
        )
    prompt_ids = [tokenizer.bos_id] if add_bos and tokenizer.bos_id is not None else []
    prompt_ids += tokenizer.encode(prompt) if prompt else []
    if not prompt_ids:
        raise UserError(
            "the prompt is empty, and this model was trained without a begin-of-text token; give a prompt of at least "
            "one character"
        )
    return prompt_ids


def fit_prompt(
    prompt_ids: Sequence[int], settings: GenerateSettings, context_length: int, bos_id: int | None = None
) -> list[int]:
    """The part of a prompt that is read: all of it if it leaves room for a token, else what `settings.beyond` says.

    `truncate` and `slide` keep the last part: half of the context, or more if `max_tokens` fits beside it. If the prompt
    begins with `bos_id`, the part does too. Raises UserError if the prompt is too long and `beyond` is `error`.
    """
    if len(prompt_ids) < context_length:
        return list(prompt_ids)
    if settings.beyond == "error":
        raise UserError(
            f"the prompt is {len(prompt_ids)} tokens long, but the model's context holds {context_length}, which leaves "
            f"no room for an answer; give a prompt of at most {context_length - 1} tokens, or beyond=truncate (on the command "
            "line: --beyond truncate), which reads its last part"
        )
    return last_part(prompt_ids, max(context_length - settings.max_tokens, context_length // 2, 1), bos_id)


def last_part(ids: Sequence[int], length: int, bos_id: int | None = None) -> list[int]:
    """The last `length` of `ids`, with their first id in front if it is `bos_id`."""
    if len(ids) <= length:
        return list(ids)
    if length > 1 and bos_id is not None and ids[0] == bos_id:
        return [bos_id, *ids[len(ids) - length + 1 :]]
    return list(ids[len(ids) - length :])
