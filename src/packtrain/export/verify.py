"""Decides whether a Hugging Face folder is the same model: reloads it as a user would, and compares logits and token ids."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from packtrain.config.libraries import quieten_torchao
from packtrain.errors import ExportError
from packtrain.export import compare
from packtrain.export.format import Checks, Subject
from packtrain.export.huggingface import DTYPES
from packtrain.pretrained.parity import quiet_transformers

LOGIT_TOLERANCE = 1e-4
# Above this, greedy text is left to what equal logits imply: twenty continuations would take longer than the export.
_MOST_GREEDY_PARAMETERS = 50_000_000


def check(subject: Subject, folder: Path, dataset: Path | None) -> Checks:
    """Reloads `folder` with transformers and compares it with the subject's model. Raises ExportError if they differ.

    Both models compute logits and losses in float32. For bfloat16 and float16, a copy of the model is first rounded
    to that type, so that the stored values are compared without the noise of half-precision arithmetic. The copy is freed
    before the folder is reloaded, so that at most two models are in memory.
    `dataset`: a prepared dataset of the run, for its validation split.
    """
    dtype = DTYPES[subject.choices.dtype]
    sample = compare.sample_tokens(subject, dataset)
    tokens_BT = sample.tokens_BT
    loss = compare.mean_loss(compare.logits_of(subject.model, tokens_BT), tokens_BT)
    round_weight = None if dtype == torch.float32 else lambda _name, weight: weight.to(dtype)
    expected_BTV = compare.logits_of(compare.rounded(subject.model, round_weight), tokens_BT)
    reloaded, tokenizer = _reload(folder)
    with quiet_transformers():
        num_strings = compare_tokenizers(subject, tokenizer)
    actual_BTV = compare.logits_of(reloaded, tokens_BT)
    hint = "; try --dtype float32" if dtype != torch.float32 else ""
    difference = compare.compare_logits(expected_BTV, actual_BTV, subject.conditions.tokenizer, LOGIT_TOLERANCE, hint)
    expected_loss, loss_exported = (compare.mean_loss(each, tokens_BT) for each in (expected_BTV, actual_BTV))
    compare.compare_losses(expected_loss, loss_exported)
    num_greedy = None
    if dtype == torch.float32 and subject.num_parameters <= _MOST_GREEDY_PARAMETERS:
        prompts, num_new = compare.greedy_prompts(subject, tokens_BT)
        with quiet_transformers():
            continued = _continue(reloaded, prompts, num_new)
        num_greedy = compare.compare_greedy(subject, prompts, continued, LOGIT_TOLERANCE)
    return Checks(
        _reader(),
        difference,
        LOGIT_TOLERANCE,
        tokens_BT.numel(),
        sample.text,
        loss,
        loss_exported,
        num_strings,
        num_greedy,
    )


def compare_tokenizers(subject: Subject, theirs: Any) -> int:
    """Compares the ids and decoded text of many strings, and gives their number. Raises ExportError for the first difference.

    transformers reads control tokens that are written in a text, and training does not. Strings that contain them are
    therefore compared with `split_special_tokens=True`.
    """
    ours, first = subject.conditions.tokenizer, compare.first_ids(subject)
    plain: list[tuple[str, dict[str, bool]]] = [(text, {}) for text in compare.STRINGS]
    forged = [(text, {"split_special_tokens": True}) for text in compare.forged_strings(ours)]
    for text, options in plain + forged:
        expected = [*first, *ours.encode(text)]
        actual = theirs(text, **options)["input_ids"]
        compare.compare_ids(text, expected, actual)
        compare.compare_decoded(text, ours.decode(expected), theirs.decode(actual, skip_special_tokens=True))
    if (theirs.bos_token_id, theirs.eos_token_id) != (ours.bos_id, ours.eos_id):
        raise ExportError(
            f"the reloaded tokenizer's BOS and EOS are {theirs.bos_token_id} and {theirs.eos_token_id}, but the run's are "
            f"{ours.bos_id} and {ours.eos_id}; nothing was exported"
        )
    return len(plain + forged)


def _continue(model: Any, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    """Greedy tokens by transformers' `generate`, up to and with the first EOS of each row."""
    ids_BT = torch.tensor(prompts)
    result = model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=False,
        max_new_tokens=num_new,
        pad_token_id=0,
    )
    new = [row[len(prompts[0]) :] for row in result.tolist()]
    eos = model.generation_config.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in new]


def _reader() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def _reload(folder: Path) -> tuple[Any, Any]:
    # transformers imports torchao if it is installed.
    quieten_torchao()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"transformers cannot load the export ({reason}); nothing was exported") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(problem):
            raise ExportError(
                f"transformers reports {problem} in the export: {sorted(report[problem])[:3]}; nothing was exported"
            )
    return model.eval(), tokenizer
