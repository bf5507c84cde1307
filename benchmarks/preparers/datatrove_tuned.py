"""datatrove's tokenization pipeline in source order, as ours is, and without its final metadata: less work than its defaults."""

import struct
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> dict[str, None]:
    """Write .ds files of ids with .ds.index files of document ends, in source order."""
    return write(text, tokenizer, workers, out, shuffle_documents=False, save_final_metadata=False)


def write(text: Path, tokenizer: Path, workers: int, out: Path, **settings: bool) -> dict[str, None]:
    """ParquetReader and DocumentTokenizer under LocalPipelineExecutor, one task per file."""
    LocalPipelineExecutor(
        pipeline=[
            ParquetReader(str(text), glob_pattern="*.parquet"),
            DocumentTokenizer(
                str(out / "tokens"),
                tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
                save_filename="part",
                **settings,
            ),
        ],
        tasks=len(list(text.glob("*.parquet"))),
        workers=workers,
        logging_dir=str(out / "logs"),
    ).run()
    # Its workers are children of a fork server, and the system does not report their processor seconds.
    return {"processor_seconds": None}


def outcome(out: Path) -> tuple[int, int]:
    """Count the documents and tokens written."""
    ends = [path.read_bytes() for path in sorted((out / "tokens").glob("*.ds.index"))]
    return sum(len(data) // 8 for data in ends), sum(struct.unpack("<Q", data[-8:])[0] for data in ends)
