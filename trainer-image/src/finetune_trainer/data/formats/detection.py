"""What a data file is, by its first bytes; the name only has to agree."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune_trainer.data.formats.delimited import choose_delimiter, looks_like_a_table
from finetune_trainer.data.formats.form import Form, refuse
from finetune_trainer.data.formats.json_document import LIST_KEY
from finetune_trainer.data.formats.unpacked import GZIP_MAGIC, open_unpacked
from finetune_trainer.data.problems import FileName

HEAD_BYTES = 2**16  # that decide what the file is
PARQUET_MAGIC = b"PAR1"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
READ = "JSON Lines, JSON, CSV (each plain or gzip) or Parquet"
CONVERT = f"give {READ}"
# How foreign files begin, what they are, and the remedy.
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive (or an Excel file)", "unpack it, or save the sheet as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save the sheet as 'CSV UTF-8'"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with zstd -d, or compress it with gzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2, or compress it with gzip"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it with unxz, or compress it with gzip"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"ARROW1", "an Arrow file", "write it as Parquet: datasets.Dataset.to_parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "write it as Parquet: datasets.Dataset.to_parquet"),
    (b"SQLite format 3", "a SQLite database", "export the table as CSV"),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"Obj\x01", "an Avro file", CONVERT),
    (b"ORC", "an ORC file", CONVERT),
    (b"%PDF", "a PDF document", CONVERT),
    (b"\x80\x04\x95", "a Python pickle, which is never opened: it could run code", CONVERT),
    (
        b"version https://git-lfs",
        "a Git LFS pointer: it stands for the real file, which was not fetched",
        "fetch it with git lfs pull, and upload that",
    ),
)
PAGE = re.compile(r"<(!doctype|html|\?xml)", re.IGNORECASE)
ENDINGS = {
    ".jsonl": Form.JSON_LINES,
    ".ndjson": Form.JSON_LINES,
    ".json": Form.JSON,
    ".csv": Form.TABLE,
    ".tsv": Form.TABLE,
    ".parquet": Form.PARQUET,
    ".pq": Form.PARQUET,
}
ALIKE = {Form.JSON_LINES: "JSON", Form.JSON: "JSON"}  # one is often named as the other, and both are read


@dataclass(frozen=True, slots=True)
class Detected:
    """`delimiter`: between the cells of a table."""

    form: Form
    delimiter: str = ","


def detect(path: Path, name: str, file: FileName, *, max_bytes: int) -> Detected:
    """What the file holds. `name` is what the user calls it, of which only the ending counts.

    Raises UserInputError for what is not read, and for a file that is not what its name says.
    """
    with path.open("rb") as stream:
        start = stream.read(HEAD_BYTES)
    packed = start.startswith(GZIP_MAGIC)
    head = _unpacked_head(path, file, max_bytes) if packed else start
    _refuse_foreign(head, file)
    if head.startswith(PARQUET_MAGIC):
        if packed:
            refuse(f"{file} data: a Parquet file inside gzip", "unpack it with gunzip; Parquet is compressed in itself")
        found = Detected(Form.PARQUET)
    else:
        found = _text_form(head.decode("utf-8-sig", "replace"), claimed(name), file)
    _refuse_other_name(found.form, name, file, empty=not head.strip())
    return found


def claimed(name: str) -> Form | None:
    """The form that a name such as `train.csv.gz` promises; None when it promises none that is known."""
    return ENDINGS.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix)


def _unpacked_head(path: Path, file: FileName, max_bytes: int) -> bytes:
    with open_unpacked(path, file, max_bytes) as stream:
        return stream.read(HEAD_BYTES)


def _refuse_foreign(head: bytes, file: FileName) -> None:
    for magic, what, remedy in FOREIGN:
        if head.startswith(magic):
            refuse(f"{file} data: the file is {what}, which is not read", remedy)
    if head.startswith(UTF16_MARKS):
        refuse(f"{file} data: the file is UTF-16", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if head[257:262] == b"ustar":
        refuse(f"{file} data: the file is a tar archive, which is not read", "unpack it, and name the file in it")
    if PAGE.match(head[:100].decode("utf-8-sig", "replace").lstrip()):
        refuse(
            f"{file} data: the file is a web page or XML, not data",
            "check the address: a page for signing in or for viewing the file is often served in its place",
        )


def _text_form(text: str, named: Form | None, file: FileName) -> Detected:
    stripped = text.lstrip()
    if stripped.startswith("["):
        return Detected(Form.JSON)
    if stripped.startswith("{"):
        return Detected(Form.JSON if _has_data_list(stripped) else Form.JSON_LINES)
    if not stripped:
        return Detected(named if named is Form.TABLE else Form.JSON_LINES)
    if "\0" in text:
        refuse(f"{file} data: the file is binary (it holds NUL bytes), of a form that is not known", CONVERT)
    if named is Form.TABLE:
        return Detected(Form.TABLE, choose_delimiter(text))
    if any(line.startswith("{") for line in text.split("\n")):
        return Detected(Form.JSON_LINES)  # of which some lines are broken: each will be named
    if looks_like_a_table(text):
        return Detected(Form.TABLE, choose_delimiter(text))
    is_named = f" and not {named}, as its name says" if named else ""
    return refuse(
        f"{file} data: the file is plain text{is_named}: its first line is neither JSON nor a header of columns",
        f'{CONVERT}; running text goes into JSON Lines as {{"text": "..."}}, with the task Completion',
    )


def _has_data_list(text: str) -> bool:
    """Whether the text begins with an object that has a list of objects under `data` among its first keys."""
    parser, at = json.JSONDecoder(), 1
    try:
        while match := re.compile(r'\s*,?\s*(?=")').match(text, at):
            key, at = parser.raw_decode(text, match.end())
            colon = re.compile(r"\s*:\s*").match(text, at)
            if not colon:
                return False
            at = colon.end()
            if key == LIST_KEY:
                return re.compile(r"\[\s*[{\]]").match(text, at) is not None
            _, at = parser.raw_decode(text, at)
    except (ValueError, RecursionError):
        return False
    return False


def _refuse_other_name(found: Form, name: str, file: FileName, *, empty: bool) -> None:
    named = claimed(name)
    if named is None or empty or ALIKE.get(named, named) == ALIKE.get(found, found):
        return
    ending = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    right = next(ending for ending, form in ENDINGS.items() if form is found)
    refuse(
        f"{file} data: the file is named {ending} ({named}), but it holds {found}",
        f"check that it is the right file; if it is, rename it to {right}",
    )
