"""Read documents from local .txt, .jsonl and .parquet files.

All files are streamed. Only lines of .jsonl and rows of .parquet are held in memory as a whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.dataset_writer import TASK_CHARACTERS, Document, split_by_hash
from errors import UserError, unknown_name

# Plain text


def read_pieces(path: Path, characters: int = TASK_CHARACTERS) -> Iterator[str]:
    """Yield the unchanged text of a UTF-8 file in pieces of at most about 2 x `characters`.

    Pieces end before a space that follows a non-whitespace character. tiktoken's byte pair
    encodings never merge across such a boundary, so the tokens are those of the whole text. Only if
    there is no such space within `characters` does a piece end elsewhere.

    Raises:
        UserError: If the file is not UTF-8.
    """
    rest = ""
    # newline="" preserves \r\n; otherwise the bytes would differ from those of the file.
    with open(path, encoding="utf-8", newline="") as file:
        try:
            while block := file.read(characters):
                text = rest + block
                cut = _last_token_boundary(text)
                yield text[:cut]
                rest = text[cut:]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text ({error}); convert it first, for example with iconv."
            ) from error
    if rest:
        yield rest


def _last_token_boundary(text: str) -> int:
    """Position of the last space that follows a non-whitespace character; else the end."""
    cut = len(text)
    while (cut := text.rfind(" ", 1, cut)) > 0:
        if not text[cut - 1].isspace():
            return cut
    return len(text)


def split_by_position(path: Path, val_fraction: float) -> Iterator[Document]:
    """Split a text file into two documents: the beginning for training, the end for validation.

    The split is at character int(n (1 - val_fraction)), as in nanoGPT's Shakespeare.
    """
    length = sum(map(len, read_pieces(path)))
    cut = int(length * (1 - val_fraction))
    yield Document("train", _characters(path, 0, cut))
    yield Document("val", _characters(path, cut, length))


def _characters(path: Path, start: int, stop: int) -> Iterator[str]:
    """Yield characters [start, stop) of a text file in pieces."""
    position = 0
    for piece in read_pieces(path):
        wanted = piece[max(start - position, 0) : max(stop - position, 0)]
        if wanted:
            yield wanted
        position += len(piece)


# Files with many documents


def _jsonl_texts(path: Path, text_field: str) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{place} is not JSON ({error}); a .jsonl file has one JSON object per line."
                ) from error
            if not isinstance(row, dict):
                raise UserError(f"{place} is not an object with a field {text_field!r}.")
            text = _text_of(row, text_field, place)
            # JSON can contain lone surrogates, which are not characters and have no UTF-8 encoding.
            yield text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parquet_texts(path: Path, text_field: str) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise UserError(_no_text(str(path), text_field, names))
        batches = file.iter_batches(batch_size=256, columns=[text_field])
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, start=1):
            yield _text_of(row, text_field, f"{path}, row {number}")


def _text_of(row: dict, text_field: str, place: str) -> str:
    text = row.get(text_field)
    if not isinstance(text, str):
        raise UserError(_no_text(place, text_field, row))
    return text


def _no_text(place: str, text_field: str, fields: Iterable[str]) -> str:
    return (
        f"{place} has no text in the field {text_field!r} (its fields: {', '.join(fields)}); "
        "select another with --text_field."
    )


TEXT_READERS = {".jsonl": _jsonl_texts, ".parquet": _parquet_texts}
TEXT_SUFFIXES = (".txt", *TEXT_READERS)


def file_documents(
    paths: Sequence[Path], val_fraction: float, text_field: str = "text"
) -> Iterator[Document]:
    """Yield the documents of local .txt, .jsonl and .parquet files.

    Each .txt file, each line of .jsonl and each row of .parquet is a document. Documents are
    assigned to splits by the hash of the file name (.txt) or of the text. A single .txt file is
    split by position.

    Raises:
        UserError: If a file is missing or has an unknown type; or, during reading, if it is
            invalid.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"file not found: {path}.")
        if path.suffix not in TEXT_SUFFIXES:
            raise UserError(f"{path}: {unknown_name('file type', path.suffix, TEXT_SUFFIXES)}")
    if len(paths) == 1 and paths[0].suffix == ".txt":
        return split_by_position(paths[0], val_fraction)
    return itertools.chain.from_iterable(
        _documents_of(path, val_fraction, text_field) for path in paths
    )


def _documents_of(path: Path, val_fraction: float, text_field: str) -> Iterator[Document]:
    if path.suffix == ".txt":
        yield Document(split_by_hash(path.name, val_fraction), read_pieces(path))
        return
    for text in TEXT_READERS[path.suffix](path, text_field):
        yield Document(split_by_hash(text, val_fraction), (text,))


def characters_of(documents: Iterable[Document]) -> str:
    """The distinct characters in the documents, sorted."""
    found: set[str] = set()
    for document in documents:
        for piece in document.pieces:
            found.update(piece)
    return "".join(sorted(found))
