"""Decides whether llama2.c's files are the same model: the reader of this room computes logits and ids, and both are compared."""

from pathlib import Path

import torch

from packtrain.errors import ExportError
from packtrain.export import compare
from packtrain.export.format import Checks, Subject
from packtrain.export.llama2c.encoder import RunTokenizer, read_vocabulary
from packtrain.export.llama2c.numbering import Numbering, number_tokens
from packtrain.export.llama2c.reader import read_model
from packtrain.export.llama2c.write import MODEL, VOCABULARY, group_size, read_back

LOGIT_TOLERANCE = 1e-4
"""For logits of standard deviation 1, in every type: both sides multiply float32 weights that read back from the file."""
_MOST_GREEDY_PARAMETERS = 20_000_000


def check(subject: Subject, folder: Path, dataset: Path | None) -> Checks:
    """Reads the folder and compares logits, greedy text and token ids. Raises ExportError for the first difference."""
    choices, config = subject.choices, subject.config
    tokenizer = subject.conditions.tokenizer
    numbering = number_tokens(tokenizer, config.vocab_rows)
    new_ids, old_ids = torch.tensor(numbering.new_ids), numbering.old_ids
    try:
        model = read_model(folder / MODEL)
        vocabulary = read_vocabulary(folder / VOCABULARY, config.vocab_rows)
    except ValueError as error:
        raise ExportError(f"the export cannot be read again: {error}; nothing was exported") from None
    num_strings, remarks = _compare_tokenizers(subject, vocabulary, numbering)
    sample = compare.sample_tokens(subject, dataset)
    tokens_BT = sample.tokens_BT
    loss = compare.mean_loss(compare.logits_of(subject.model, tokens_BT), tokens_BT)
    size = group_size(config, choices.group_size) if choices.dtype == "int8" else 0
    round_weight = None if size == 0 else lambda _name, weight: read_back(weight, size)
    expected_BTV = compare.logits_of(compare.rounded(subject.model, round_weight), tokens_BT)
    actual_BTV = torch.from_numpy(model.logits(new_ids[tokens_BT].numpy()))[:, :, new_ids]
    tolerance = LOGIT_TOLERANCE * max(1.0, float(expected_BTV.std(-1).mean()))
    difference = compare.compare_logits(expected_BTV, actual_BTV, tokenizer, tolerance)
    num_greedy = None
    if choices.dtype == "float32" and subject.num_parameters <= _MOST_GREEDY_PARAMETERS:
        prompts, num_new = compare.greedy_prompts(subject, tokens_BT)
        renumbered = [[numbering.new_ids[i] for i in prompt] for prompt in prompts]
        continued = [[old_ids[i] for i in new] for new in model.continue_greedily(renumbered, num_new)]
        num_greedy = compare.compare_greedy(subject, prompts, continued, tolerance)
    return Checks(
        reader="the reader of llama2.c's files in packtrain",
        max_logit_difference=difference,
        tolerance=tolerance,
        num_tokens=tokens_BT.numel(),
        text=sample.text,
        loss=loss,
        loss_exported=compare.mean_loss(actual_BTV, tokens_BT),
        num_strings=num_strings,
        num_greedy=num_greedy,
        remarks=remarks,
    )


def _compare_tokenizers(
    subject: Subject, vocabulary: RunTokenizer, numbering: Numbering
) -> tuple[int, tuple[str, ...]]:
    """Compares ids and text. Gives the number of strings, and what run.c does otherwise than training did, in sentences.

    The text of every string's ids must be the same. Ids must be the same too for a tokenizer of sentencepiece's kind that
    puts a space before a text, as run.c does; for others, how many are the same is counted.
    """
    ours, remarks = subject.conditions.tokenizer, []
    new_ids = numbering.new_ids
    texts = [*compare.STRINGS, *compare.forged_strings(ours)]
    is_run_cs = ours.kind == "sentencepiece" and ours.decode(ours.encode("a")) == "a" and ours.bytes_of_ids("a") == 2
    num_same = 0
    for text in texts:
        ids = [new_ids[i] for i in ours.encode(text)]
        printed = vocabulary.decode(ids).decode("utf-8", "replace")
        # After BOS, run.c drops a space at the front.
        compare.compare_decoded(text, text if is_run_cs else text.removeprefix(" "), printed, "run.c")
        actual = vocabulary.encode(text)
        if is_run_cs:
            compare.compare_ids(text, ids, actual, "run.c")
        # run.c's own space, before a text of another kind.
        num_same += actual == (ids if is_run_cs else [new_ids[i] for i in ours.encode(" " + text)])
    if not is_run_cs:
        remarks.append(
            f"run.c puts a space before a prompt and merges across words; with that space, {num_same} of {len(texts)} strings get "
            "the token ids of training, and a text without a prompt is not affected"
        )
    if not numbering.is_ours:
        remarks.append(
            "tokens have other ids than in the run, because run.c needs BOS, EOS and the bytes at fixed ones"
        )
    if not subject.conditions.add_bos:
        remarks.append("run.c begins each text with a control token, and documents in training did not")
    return len(texts), tuple(remarks)
