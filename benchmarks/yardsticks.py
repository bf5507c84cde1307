"""Published results that a laptop can reach, repeated through packtrain's own prepare, train and evaluate.

    python -m benchmarks.yardsticks --data FOLDER [--only shakespeare names] [--blimp RUN] [--json FILE]

`FOLDER` has tinyshakespeare.txt, names.txt and blimp/*.jsonl; what is absent is left out, and said.

- shakespeare: nanoGPT's README (github.com/karpathy/nanoGPT), "I only have a macbook": a character-level model of 4 layers, 4 heads
  and 128 wide, 64 characters of context, batch 12, 2,000 steps; published 1.88 nats per character. nanoGPT estimates on 20 random
  batches of the last tenth, and this on the whole of it.
- names: makemore's README (github.com/karpathy/makemore): a transformer of 4 layers, 4 heads and 64 wide on 32,033 names; published
  1.92 nats per character on 1,000 held-out names, the end of a name included. Its number of steps is not published; --names-steps.
- blimp: the minimal pairs of BLiMP (arXiv 1912.00582, github.com/alexwarstadt/blimp), for a run of yours: the share of pairs in which
  the good sentence has the higher probability. A tie is no hit. Published over all 67 sets: 5-gram 0.612, LSTM 0.698, GPT-2 0.83.

The models are Llamas of the same width and depth, not GPT-2s: the figures are to be near the published ones, not equal to them.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PUBLISHED = {"shakespeare": 1.88, "names": 1.92}
_UNKNOWN, _EOS = "<unk>", "</s>"
_PRESETS = Path(__file__).parent / "presets"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line for each, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="packtrain-yardsticks-") as scratch:
        for name, measure in (("shakespeare", _measure_shakespeare), ("names", _measure_names)):
            source = options.data / _FILES[name]
            if name not in options.only:
                continue
            if not source.is_file():
                print(f"{name}: not measured, because {source} is absent")
                continue
            measured[name] = measure(source, Path(scratch) / name, options)
            found = measured[name]
            print(
                f"{name}: {found['loss']:.4f} nats per character on {found['tokens']:,} held-out ones "
                f"(published: {PUBLISHED[name]}); {found['steps']:,} steps, {found['parameters']:,} parameters",
                flush=True,
            )
    if options.blimp is not None:
        files = sorted((options.data / "blimp").glob("*.jsonl"))
        if not files:
            print(f"blimp: not measured, because {options.data / 'blimp'} has no *.jsonl")
        for file in files:
            share = measured.setdefault("blimp", {})[file.stem] = measure_blimp(options.blimp, file)
            print(f"blimp {file.stem}: {share:.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=2) + "\n")
    return measured


_FILES = {"shakespeare": "tinyshakespeare.txt", "names": "names.txt"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.yardsticks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="where the published texts are")
    parser.add_argument("--only", nargs="*", choices=sorted(_FILES), default=sorted(_FILES))
    parser.add_argument("--blimp", type=Path, metavar="RUN", help="measure this run on BLiMP")
    parser.add_argument("--steps", type=int, default=2000, help="of shakespeare; the published number is 2,000")
    parser.add_argument("--names-steps", type=int, default=4000, help="of names, with 1,024 characters each")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the runs here")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _measure_shakespeare(source: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    prepare_shakespeare(source, scratch)
    return _measure(scratch, "nanogpt-shakespeare", options.steps, options.keep)


def prepare_shakespeare(source: Path, folder: Path, recipe: Sequence[str] = ()) -> None:
    """Characters of one document, cut where its last tenth begins, as nanoGPT's prepare.py does. The text itself is not cleaned."""
    by_tail = ["split.by=tail", "split.validation_fraction=0.1", "tokenizer.eos=false"]
    _prepare_characters(source, folder, [*by_tail, *recipe])


def _measure_names(source: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A document for each line, with an end; each sees only itself. About 1,000 names are held out, by a hash of the name."""
    recipe = ["source.separator=\\n", "dedup.exact=false", "split.validation_fraction=0.0312", "tokenizer.eos=true"]
    _prepare_characters(source, scratch, recipe)
    return _measure(scratch, "makemore-names", options.names_steps, options.keep)


def _prepare_characters(source: Path, folder: Path, recipe: Sequence[str]) -> None:
    """Makes `dataset` and `tokenizer` in `folder`, unless they are there already."""
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare

    if not (folder / "tokenizer" / "tokenizer_config.json").is_file():
        write_character_tokenizer(source.read_text(encoding="utf-8"), folder / "tokenizer")
    # It has every character of this text, and no other.
    as_it_is = [
        "clean.normalize=none",
        "clean.control_characters=false",
        "clean.line_ends=false",
        "clean.whitespace=false",
    ]
    where = [
        "source.kind=text",
        f"source.path={source}",
        f"tokenizer.name={folder / 'tokenizer'}",
        "tokenizer.bos=false",
    ]
    chosen = load_recipe("stdlib", [*where, *as_it_is, "prepare.workers=1", "tokenizer.vocab_size=", *recipe]).config
    prepare(chosen, folder / "dataset")


def _measure(scratch: Path, preset: str, steps: int, keep: Path | None) -> dict[str, Any]:
    from packtrain.config.load import load_run_config
    from packtrain.train.run import train

    own = ["evaluate.every=0", "evaluate.prompts=[]", "checkpoint.every=0", f"data.dataset={scratch / 'dataset'}"]
    run = (keep or scratch / "runs") / scratch.name
    config = load_run_config(str(_PRESETS / f"{preset}.toml"), [*own, f"train.steps={steps}"]).config
    train(config, run, resume=False)
    return _evaluate(run)


def _evaluate(run: Path) -> dict[str, Any]:
    from contextlib import nullcontext

    from packtrain.evaluate.measure import evaluate_run, open_evaluation_data
    from packtrain.runs.checkpoint import open_run

    opened = open_run(run)
    outcome = evaluate_run(
        opened, open_evaluation_data(opened), tokens=None, progress=lambda *_: nullcontext(lambda *_: None)
    )["model"]
    parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    return {"loss": outcome["loss"], "tokens": outcome["num_tokens"], "steps": opened.step, "parameters": parameters}


def write_character_tokenizer(text: str, folder: Path) -> None:
    """A tokenizer folder in which each character of `text` is an id. Two more stand for other characters, and end a document."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(set(text))
    vocabulary = {character: index for index, character in enumerate([*characters, _UNKNOWN, _EOS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(_EOS, special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _EOS, "unk_token": _UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def measure_blimp(run: Path, file: Path) -> float:
    """The share of a set's pairs in which a run gives the good sentence the higher probability."""
    from packtrain.pretrained.conditions import conditions_of
    from packtrain.runs.checkpoint import open_run

    opened = open_run(run)
    conditions = conditions_of(opened)
    start = conditions.tokenizer.bos_id if conditions.add_bos else conditions.tokenizer.eos_id
    pairs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sentences = [pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")]
    ids = [[*([] if start is None else [start]), *conditions.tokenizer.encode(sentence)] for sentence in sentences]
    logs = list(_log_probabilities(opened.model, ids))
    return sum(good > bad for good, bad in zip(logs[::2], logs[1::2], strict=True)) / len(pairs)


def _log_probabilities(model: Any, sentences: Sequence[Sequence[int]], at_once: int = 32) -> Iterator[float]:
    """The sum over each sentence's tokens but the first of their log-probabilities, in nats."""
    import torch

    for first in range(0, len(sentences), at_once):
        some = sentences[first : first + at_once]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in some], batch_first=True)
        with torch.no_grad():
            logs = torch.log_softmax(model(padded[:, :-1]).double(), dim=-1)
        of_targets = logs.gather(2, padded[:, 1:, None]).squeeze(2)
        # Padding follows the sentence, and attention does not look ahead.
        yield from (float(row[: len(ids) - 1].sum()) for row, ids in zip(of_targets, some, strict=True))


if __name__ == "__main__":
    main()
