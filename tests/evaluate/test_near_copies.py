"""Whether near-copies between the two sides of a dataset are counted, and told as they are."""

import json

from packtrain.config.load import load_recipe
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.evaluate.near_copies import NearCopies, count_near_copies, describe_near_copies
from packtrain.prepare.run import prepare


def _count(tmp_path, rows):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"side": side, "text": text}) + "\n" for side, text in rows))
    settings = [f"source.path={source}", "split.by=column", "split.column=side", "tokenizer.vocab_size=300"]
    prepare(load_recipe("jsonl", [*settings, "prepare.workers=1"]).config, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    return count_near_copies(dataset, load_tokenizer(dataset.tokenizer_folder))


def test_a_held_out_document_with_most_of_its_words_in_training_is_counted(tmp_path):
    words = [f"word{number}" for number in range(60)]
    near, unlike = " ".join(words), " ".join(reversed(words))
    rows = [
        ("train", " ".join([*words[:-1], "other"])),
        # Half of the held-out document is no near-copy of it.
        ("train", " ".join(words[30:] + [f"else{number}" for number in range(30)])),
        ("train", "too short"),
        ("valid", near),
        ("valid", unlike),
        ("valid", "short too"),
    ]
    found = _count(tmp_path, rows)
    assert (found.documents, found.copies) == (3, 1)
    assert found.copied_bytes == len(near)
    assert found.num_bytes == len(near) + len(unlike) + len("short too")
    # 56 runs of either order, and the short document, of which training has the 55 and the one that ends with the last word.
    assert found.shared == 56 / 113


def test_the_sentence_says_documents_and_bytes():
    assert describe_near_copies(NearCopies(53, 2, 1000, 100, 0.25)) == (
        "2 of 53 held-out documents, 10.0% of their bytes, are near-copies of a training document; "
        "training has 25.0% of the held-out runs of 5 words"
    )
