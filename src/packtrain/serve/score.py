"""Decides how likely each token of a prompt is, for an answer that repeats the prompt."""

import torch

from packtrain.model.llama import Llama
from packtrain.serve.growing import ChosenToken, locate
from packtrain.serve.orders import Order, Reader

# Rows of logits at a time: 32,000 of 4 bytes for each.
_ROWS = 128


@torch.no_grad()
def score_prompt(model: Llama, reader: Reader, order: Order) -> tuple[ChosenToken, ...]:
    """The tokens of the prompt from `echo_from` on. One pass of the model; waits for the device."""
    ids, num_alternatives = order.prompt_ids, order.num_alternatives or 0
    tokens_BT = torch.tensor([ids], device=model.model.norm.weight.device)
    x_BTD, _ = model.embed(tokens_BT)
    x_TD = model.model(x_BTD)[0]
    logprobs: list[float | None] = [None]
    alternatives: list[tuple[tuple[int, float], ...]] = [()]
    for start in range(0, len(ids) - 1, _ROWS):
        stop = min(start + _ROWS, len(ids) - 1)
        logits_TV = model.lm_head(x_TD[start:stop]).float()[:, : reader.tokenizer.vocab_size]
        logprobs_TV = logits_TV.log_softmax(-1)
        targets_T = tokens_BT[0, start + 1 : stop + 1].clamp(max=logits_TV.shape[1] - 1)
        logprobs += logprobs_TV.gather(1, targets_T[:, None])[:, 0].tolist()
        if num_alternatives:
            best = logprobs_TV.topk(min(num_alternatives, logprobs_TV.shape[1]))
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            alternatives += [tuple(zip(some, values, strict=True)) for some, values in rows]
        else:
            alternatives += [()] * (stop - start)
    first = order.echo_from
    _, offsets = locate(reader.tokenizer, ids[first:])
    told = zip(ids[first:], logprobs[first:], alternatives[first:], offsets, strict=True)
    return tuple(ChosenToken(*each) for each in told)
