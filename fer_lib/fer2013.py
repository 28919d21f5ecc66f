"""FER2013 in every form it comes in, and image folders of other data sets, read into one Faces.

    faces = load("fer2013.csv", cache="results/cache")  # also packed, icml_face_data.csv, or a folder
    faces = load("rafdb/", splits={"train": "train", "test": "test"}, emotions="rafdb")
    plus = votes("fer2013new.csv", faces)               # FER+ votes of the same faces
    author = maskfer_rows("maskfer_rows.csv", faces)    # bool [N], the faces of the first paper's MaskFer
    tables = report(faces, plus)                        # what the data set holds, as tidy frames

Identity of a face (`Faces.row`): its row in the csv, counted from 0 below the header (`icml_face_data.csv` has the same
order). In an image tree it is the face's place when the files are sorted by split (train, val, test), number in the
name, and path. The numbers in `Training_3908.jpg` are names, not rows of the csv; only where the three splits have the
official sizes and their numbers run without a gap is that place taken for the csv's row and the source called
"fer2013". Otherwise it is "fer2013_images", and what is paired by row (FER+ votes, MaskFer's rows) is refused.

Anything wrong with the input raises DataError, one sentence that says what and how to mend it; nothing is written then.
Archives are never unpacked: members are read in memory, and an archive with a member that points outside is refused.
"""
import bz2
import gzip
import hashlib
import logging
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pandas as pd
from PIL import Image

from fer_lib.faces import EMOTIONS, SIZE, SPLITS, Faces, named_after

log = logging.getLogger(__name__)

PIXELS = SIZE * SIZE
COLUMNS = ("emotion", "pixels", "Usage")
USAGES = ("Training", "PublicTest", "PrivateTest")  # in the order of SPLITS
OFFICIAL = np.array([[3995, 436, 4097, 7215, 4830, 3171, 4965],  # faces per split and emotion, int [3, 7]
                     [467, 56, 496, 895, 653, 415, 607],
                     [491, 55, 528, 879, 594, 416, 626]])
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
HELD_IN_FOLDER = ("fer2013.csv", "fer2013.csv.gz", "fer2013.csv.xz", "fer2013.csv.bz2", "fer2013.csv.zip",
                  "icml_face_data.csv", "icml_face_data.csv.zip", "fer2013.tar.gz", "fer2013.zip")  # in this order
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm")
BLOCK = 1 << 19    # bytes of csv parsed at a time: about 60 faces, whose arrays stay in the processor's cache
CACHE_VERSION = 1  # raised by hand when a loader gives other arrays for the same file
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}  # names of split folders
TRAILER = 64       # bytes at the end of a cache file that hold the source's name

SYNONYMS = {"angry": "angry", "anger": "angry", "disgust": "disgust", "disgusted": "disgust", "fear": "fear",
            "fearful": "fear", "afraid": "fear", "scared": "fear", "happy": "happy", "happiness": "happy",
            "joy": "happy", "sad": "sad", "sadness": "sad", "surprise": "surprise", "surprised": "surprise",
            "neutral": "neutral", "neutrality": "neutral",
            "contempt": None, "contemptuous": None}  # None: left out, with a notice
LAYOUTS = {  # numeric class folders say nothing by themselves; the orders in which three data sets number them
    "fer2013": {str(i): name for i, name in enumerate(EMOTIONS)},
    "rafdb": {"1": "surprise", "2": "fear", "3": "disgust", "4": "happy", "5": "sad", "6": "angry", "7": "neutral"},
    "affectnet": {"0": "neutral", "1": "happy", "2": "sad", "3": "surprise", "4": "fear", "5": "disgust", "6": "angry",
                  "7": None},
}
NAMED = re.compile(r"(Training|PublicTest|PrivateTest)_?(\d+)")
PERSON = re.compile(r"S\d{3}(?=_)")  # CK+: S005_001_00000009.png
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
FERPLUS_EMOTION = np.array([EMOTIONS.index(SYNONYMS[name]) if SYNONYMS.get(name) else -1 for name in FERPLUS])
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError)


class DataError(ValueError):
    """The input is not what it should be; the message is one sentence that says what is wrong and how to mend it."""


def load(path: str | Path, splits: dict[str, str] | None = None, cache: str | Path | None = None,
         emotions: str | dict[str, str | None] | None = None) -> Faces:
    """The faces at `path`: a csv, an archive that holds one, a folder that holds either, or a tree of images.

    splits    only for image trees whose file names do not say the split: {"train": folder, "test": folder,
              "val": folder}, folders relative to `path`; by default those named so, if the tree has them. Without "val" a
              seeded tenth of train is held out, without "test" a fifth before that: drawn per emotion, or by person
              where every file name starts with one as in CK+ (S005_001_..png).
    cache     a folder; the arrays are kept there as one uint8 file, mapped read-only by later loads of the same data.
    emotions  only for class folders not named after emotions: a name in LAYOUTS, or {folder: emotion, None to skip}.

    Images are uint8 [N, 48, 48]; those of other sizes turn grey and are resized with an antialiasing filter (Lanczos).
    Raises DataError.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist: give the path of fer2013.csv, of an archive that holds it, or of a "
                        "folder of faces.")
    splits = {split: folder for split, folder in splits.items() if folder is not None} if splits is not None else None
    path = _inside(path) if path.is_dir() and splits is None and emotions is None else path
    kept = Path(cache) / f"faces-{_key(path, splits, emotions)}.npy" if cache is not None else None
    if kept is not None and (faces := _recall(kept)) is not None:
        return faces
    faces = _read(path, splits, emotions)
    for split, n in zip(SPLITS, faces.counts().sum(1)):
        if n == 0:
            raise DataError(f"{path} holds no faces of the split {split!r}: use a complete copy of the data set with "
                            "all three splits.")
    if kept is None:
        return faces
    try:
        _keep(faces, kept)
    except OSError as error:
        log.warning("The faces are not cached: %s cannot be written (%s).", kept, error)
        return faces
    return _recall(kept) or faces


def _inside(folder: Path) -> Path:
    """The file of FER2013 that a folder holds, directly or in its `fer2013/`; else the folder itself, an image tree."""
    for place in (folder, folder / "fer2013"):
        for name in HELD_IN_FOLDER:
            if (place / name).is_file():
                return place / name
    return folder


def _read(path: Path, splits: dict[str, str] | None, emotions: str | dict | None) -> Faces:
    """The faces of a file or an image tree, read by the reader that its name asks for."""
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file.read_bytes for file in _images_in(path)}
        return _tree(files, path, splits, emotions)
    name = path.name.lower()
    reader = next((READERS[ending] for ending in READERS if name.endswith(ending)), None)
    if reader is None:
        raise DataError(f"{path.name} is of no known form: use one that ends in {', '.join(READERS)}, or a folder of "
                        "images.")
    with _readable(path):
        return reader(path, splits, emotions)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the decompressors and the file system raise into one sentence."""
    try:
        yield
    except DataError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): fetch or copy the file again.") from error
    except (NotImplementedError, RuntimeError) as error:  # zip: unknown compression, password
        raise DataError(f"{path} cannot be unpacked ({error}): pack it again, as a plain zip.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): check that it is whole and that you may read it.") from error


# ---- csv ----

def _csv(stream: BinaryIO, name: str) -> Faces:
    """Parses a csv with the columns emotion, pixels and Usage, in any order, from bytes; skips blank lines."""
    blocks = _lines(stream, name)
    first = next(blocks, [b""])
    header = [field.strip() for field in first[0].decode("utf-8-sig", "replace").split(",")]
    if missing := [column for column in COLUMNS if column not in header]:
        raise DataError(f"{name} has no column {' or '.join(missing)} (its first line is {','.join(header)[:80]!r}): "
                        f"use fer2013.csv with the header {','.join(COLUMNS)}, or icml_face_data.csv.")
    emotion, pixels, usage = (header.index(column) for column in COLUMNS)
    images, labels, split = [], [], []
    for block in chain([first[1:]], blocks):
        start, texts = len(labels), []
        for line in filter(None, block):
            fields = line.split(b",")
            if len(fields) != len(header):
                raise DataError(f"{name}, {_at(len(labels))}: {len(fields)} fields where the header has {len(header)}; "
                                "the file is cut short or was edited, fetch or copy it again.")
            labels.append(_known(fields[emotion], LABEL_OF, "emotion", name, len(labels)))
            split.append(_known(fields[usage], SPLIT_OF, "Usage", name, len(split)))
            texts.append(fields[pixels])
        if texts:
            images.append(_pixels(texts, name, start))  # uint8 [n, 48, 48]
    if not images:
        raise DataError(f"{name} has a header but no faces: fetch or copy the file again.")
    row = np.arange(len(labels))
    return Faces(np.concatenate(images), np.array(labels, np.uint8), np.array(split, np.uint8), row, "fer2013")


def _lines(stream: BinaryIO, name: str) -> Iterator[list[bytes]]:
    """The lines of a stream, about a BLOCK at a time, without line ends and quotes."""
    rest = b""
    while read := stream.read(BLOCK):
        text = rest + read
        cut = text.rfind(b"\n") + 1
        text, rest = text[:cut], text[cut:]
        if len(rest) > BLOCK:
            raise DataError(f"{name} has a line of more than {BLOCK:,} bytes: it is no csv of faces, use fer2013.csv.")
        if text:
            yield _bare(text).split(b"\n")
    yield _bare(rest).split(b"\n")


def _bare(text: bytes) -> bytes:
    for unwanted in (b"\r", b'"'):
        text = text.replace(unwanted, b"") if unwanted in text else text
    return text


def _at(row: int) -> str:
    return f"row {row} (counted from 0 below the header)"


def _known(field: bytes, known: dict[bytes, int], column: str, name: str, row: int) -> int:
    """The number that a field of the csv stands for; unknown fields raise DataError."""
    value = known.get(field)
    value = known.get(field.strip()) if value is None else value
    if value is None:
        raise DataError(f"{name}, {_at(row)}: {column} is {field.decode('utf-8', 'replace')[:40]!r}, not one of "
                        f"{', '.join(key.decode() for key in known)}; the file is damaged or holds other classes, use "
                        "fer2013.csv.")
    return value


def _pixels(texts: list[bytes], name: str, start: int) -> np.ndarray:
    """Images of rows of decimal numbers, uint8 [n, 48, 48], without a Python step per number.

    Every byte at once: its digit, plus ten times the digit to its left, plus a hundred times the next one if nothing
    parts them. At the last digit of a number that sum is the number (mod 256; the hundreds tell what is too large).
    If anything looks wrong, _slow reads the same rows one number at a time and names the row.
    """
    joined = np.frombuffer(b"".join((b"  ", b"\n".join(texts), b"\n")), np.uint8)
    digit = joined - np.uint8(48)
    is_digit = digit < 10
    digit *= is_digit                                         # 0 where there is none
    hundreds = digit[:-3] * (is_digit[1:-2] & is_digit[2:-1])
    value = digit[1:-2] * np.uint8(10)
    value += hundreds * np.uint8(100)
    value += digit[2:-1]
    last = is_digit[2:-1] > is_digit[3:]                      # the last digit of its number
    spaces = np.count_nonzero(joined == 32) + len(texts)      # and one line end a row
    too_long = (is_digit[:-3] & is_digit[1:-2] & is_digit[2:-1] & is_digit[3:]).any()
    too_large = hundreds.max(initial=0) > 2 or ((hundreds == 2) & (value < 200)).any()
    ends = np.cumsum([len(text) + 1 for text in texts])
    counts = [np.count_nonzero(last[a:b]) for a, b in zip((0, *ends[:-1]), ends)]
    if np.count_nonzero(is_digit) + spaces != len(joined) or too_long or too_large or set(counts) != {PIXELS}:
        return np.stack([_slow(text, name, start + i) for i, text in enumerate(texts)])
    return value[last].reshape(-1, SIZE, SIZE)


def _slow(text: bytes, name: str, row: int) -> np.ndarray:
    """One image, uint8 [48, 48], number by number, or the reason why the row is none."""
    numbers = text.split()
    if wrong := next((number for number in numbers if not number.removeprefix(b"-").isdigit()), None):
        raise DataError(f"{name}, {_at(row)}: pixel {wrong.decode('utf-8', 'replace')[:20]!r} is not a whole number; "
                        "the file is damaged or was edited, fetch or copy it again.")
    if len(numbers) != PIXELS:
        raise DataError(f"{name}, {_at(row)}: {len(numbers)} pixels instead of {PIXELS}; the file is cut short or was "
                        "edited, fetch or copy it again.")
    if wrong := next((n for n in numbers if n.startswith(b"-") or int(n.lstrip(b"0")[:4] or 0) > 255), None):
        raise DataError(f"{name}, {_at(row)}: pixel value {wrong.decode()[:20]} lies outside 0..255; scale the pixels "
                        "to whole numbers from 0 to 255.")
    return np.array([int(number.lstrip(b"0") or 0) for number in numbers], np.uint8).reshape(SIZE, SIZE)


# ---- archives ----

def _plain(opener: Callable) -> Callable:
    """Reader of one csv behind `opener`, which is open, gzip.open or the like."""
    def read(path: Path, splits: dict | None, emotions: str | dict | None) -> Faces:
        _says_itself(path, splits, emotions)
        with opener(path, "rb") as stream:
            return _csv(stream, path.name)
    return read


def _says_itself(path: Path, splits: dict | None, emotions: str | dict | None) -> None:
    if splits is not None or emotions is not None:
        raise DataError(f"{path.name} says split and emotion by itself: leave `splits` and `emotions` out, they are "
                        "for folders of images.")


def _refuse_strays(name: str, archive: Path, is_link: bool = False) -> None:
    """Raises DataError for a member that would be written outside the folder its archive is unpacked in."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if is_link or ".." in parts or parts[:1] == ("/",) or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{archive} holds the member {name!r}, which is a link or points outside the archive: do not "
                        "unpack it, and fetch the data set from its source again.")


def _tar(opener: Callable) -> Callable:
    """Reader of the csv in a tar archive behind `opener`, in one pass over its members and to its last byte."""
    def read(path: Path, splits: dict | None, emotions: str | dict | None) -> Faces:
        _says_itself(path, splits, emotions)
        faces = None
        with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                _refuse_strays(member.name, path, is_link=not (member.isfile() or member.isdir()))
                if faces is None and member.isfile() and PurePosixPath(member.name).name in CSV_NAMES:
                    faces = _csv(archive.extractfile(member), f"{path.name}:{member.name}")
            while stream.read(BLOCK):  # so that the packer's checksum is reached and compared
                pass
        if faces is None:
            raise DataError(f"{path} holds no {' or '.join(CSV_NAMES)}: use the competition's fer2013.tar.gz, or "
                            "unpack other archives yourself and give the folder.")
        return faces
    return read


def _zip(path: Path, splits: dict | None, emotions: str | dict | None) -> Faces:
    """The csv of a zip archive, or else the image tree in it."""
    with zipfile.ZipFile(path) as archive:
        for name in (names := archive.namelist()):
            _refuse_strays(name, path)
        held = [name for known in CSV_NAMES for name in names
                if PurePosixPath(name).name == known and not name.startswith("__MACOSX")]
        images = [name for name in names if _is_image(name)]
        if not held and not images:
            held = [name for name in names if name.lower().endswith(".csv")][:1]
        if held:
            _says_itself(path, splits, emotions)
            with archive.open(held[0]) as stream:
                return _csv(stream, f"{path.name}:{held[0]}")
        if not images:
            raise DataError(f"{path} holds neither {' nor '.join(CSV_NAMES)} nor images: give the archive or folder "
                            "that does.")
        return _tree({name: (lambda name=name: archive.read(name)) for name in sorted(images)}, path, splits, emotions)


READERS = {".tar.gz": _tar(gzip.open), ".tgz": _tar(gzip.open), ".tar.xz": _tar(lzma.open),
           ".tar.bz2": _tar(bz2.open), ".tar": _tar(open), ".zip": _zip,
           ".csv": _plain(open), ".csv.gz": _plain(gzip.open), ".csv.xz": _plain(lzma.open),
           ".csv.bz2": _plain(bz2.open)}
LABEL_OF = {str(i).encode(): i for i in range(len(EMOTIONS))}
SPLIT_OF = {usage.encode(): i for i, usage in enumerate(USAGES)}


# ---- cache ----

def _key(path: Path, splits: dict | None, emotions: str | dict | None) -> str:
    """Twenty hexadecimal digits that change with the source's path, size and time, and with how it is read."""
    files = [path] if path.is_file() else _images_in(path)
    facts = [CACHE_VERSION, str(path.resolve()), splits, emotions]
    facts += [(file.as_posix(), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:20]


def _keep(faces: Faces, file: Path) -> None:
    """Writes faces as one flat uint8 array: images, rows (little-endian int64), labels, splits, the source's name."""
    name = faces.source.encode()[:TRAILER].ljust(TRAILER, b"\0")
    parts = (faces.images, faces.row.astype("<i8"), faces.labels, faces.split)
    flat = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts] + [np.frombuffer(name, np.uint8)]
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.part")
    try:
        with open(temporary, "wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": (sum(map(len, flat)),)}
            np.lib.format.write_array_header_1_0(out, header)
            for part in flat:
                out.write(part.data)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _recall(file: Path) -> Faces | None:
    """Faces mapped from a cache file, arrays read-only; None where there is none or it is broken."""
    if not file.is_file():
        return None
    try:
        flat = np.asarray(np.load(file, mmap_mode="r"))
        n, left = divmod(flat.size - TRAILER, PIXELS + 8 + 1 + 1)
        if flat.dtype != np.uint8 or flat.ndim != 1 or left or n < 1:
            raise ValueError("its size fits no number of faces")
        images, row, labels, split, name = np.split(flat, np.cumsum([n * PIXELS, n * 8, n, n]))
        if labels.max() >= len(EMOTIONS) or split.max() >= len(SPLITS):
            raise ValueError("it holds unknown labels or splits")
        source = name.tobytes().rstrip(b"\0").decode()
        return Faces(images.reshape(n, SIZE, SIZE), labels, split, row.view("<i8"), source)
    except (OSError, ValueError, EOFError) as error:
        log.warning("The cache %s is broken (%s) and is built again.", file, error)
        return None


# ---- image trees ----

def _is_image(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    return name.lower().endswith(IMAGE_ENDINGS) and not hidden


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_image(file.relative_to(folder).as_posix()))


def _tree(files: dict[str, Callable[[], bytes]], path: Path, splits: dict | None, emotions: str | dict | None) -> Faces:
    """The faces of an image tree: `files` maps a path within the tree to a function that reads the file's bytes."""
    if not files:
        raise DataError(f"{path} holds neither {', '.join(CSV_NAMES)}, an archive of FER2013, nor images: give the "
                        "folder that does.")
    names = np.array(list(files))
    labels = _labels(names, path, emotions)                  # int64 [n], -1 is left out
    names, labels = names[labels >= 0], labels[labels >= 0]
    named = [NAMED.fullmatch(PurePosixPath(name).stem) for name in names]
    splits = _stated(names) if splits is None and not any(named) else splits
    if splits is not None:
        split = _split_by_folder(names, labels, path, splits)  # int64 [n], -1 is left out
        numbers, source = np.zeros(len(names), np.int64), named_after(path.stem, "faces")
    elif len(names) and all(named):
        split = np.array([USAGES.index(match[1]) for match in named])
        numbers, source = np.array([int(match[2]) for match in named]), "fer2013_images"
        stems = pd.Series([match[0] for match in named])
        if len(twice := stems[stems.duplicated()]):
            raise DataError(f"{path} holds {twice.iloc[0]} more than once ({len(twice)} such names): give a folder "
                            "with one copy of each face.")
    else:
        odd = [str(name) for name, match in zip(names, named) if not match]
        raise DataError(f"{path}: {len(odd)} of {len(names)} file names, such as {odd[0] if odd else 'none'}, do not "
                        "say the split as Training_3908.jpg does: say which folder is which with "
                        'splits={"train": "train", "test": "test"}.')
    order = np.lexsort((names, numbers, split))
    order = order[split[order] >= 0]
    names, labels, split, numbers = names[order], labels[order], split[order], numbers[order]
    if source == "fer2013_images":
        parts = [numbers[split == i] for i in range(len(SPLITS))]
        if all(len(part) == n == np.ptp(part) + 1 for part, n in zip(parts, OFFICIAL.sum(1))):
            source = "fer2013"
    images = _decoded([files[name] for name in names], names, path)  # uint8 [N, 48, 48]
    return Faces(images, labels.astype(np.uint8), split.astype(np.uint8), np.arange(len(names)), source)


def _labels(names: np.ndarray, path: Path, emotions: str | dict | None) -> np.ndarray:
    """Index into EMOTIONS by the folder an image lies in, int64 [n], -1 for those that are none of the seven."""
    if isinstance(emotions, str) and emotions not in LAYOUTS:
        raise DataError(f"Unknown layout of class folders {emotions!r}: use one of {', '.join(LAYOUTS)} or a "
                        "dictionary folder -> emotion.")
    known = SYNONYMS if emotions is None else LAYOUTS[emotions] if isinstance(emotions, str) else emotions
    known = {str(folder).lower(): name for folder, name in known.items()}
    stated = {str(name) for name in known.values() if name is not None}
    if wrong := sorted(name for name in stated if emotions is not None and SYNONYMS.get(name.lower()) is None):
        raise DataError(f"Unknown emotion {', '.join(wrong)} in `emotions`: use {', '.join(EMOTIONS)}, or None to "
                        "leave a folder out.")
    folders = [PurePosixPath(name).parent.name for name in names]
    number = r"^\d+[\s_.-]+" if emotions is None else r"^$"  # 0_angry is angry, if nobody says otherwise
    plain = {folder: re.sub(number, "", folder.strip().lower()) for folder in set(folders)}
    if strange := sorted(folder for folder in plain if plain[folder] not in known):
        listed = ", ".join(repr(folder) for folder in strange[:10]) + (", .." if len(strange) > 10 else "")
        raise DataError(f"{path}: class folders {listed} are not named after emotions: rename them, or say what they "
                        f'mean with emotions={{"1": "surprise", ..}} or one of the layouts {", ".join(LAYOUTS)}.')
    index = {}
    for folder in plain:
        emotion = known[plain[folder]]
        index[folder] = -1 if emotion is None else EMOTIONS.index(SYNONYMS[emotion.lower()])
    labels = np.array([index[folder] for folder in folders], np.int64)
    if left_out := np.count_nonzero(labels < 0):
        log.warning("%s: %d images of contempt or another class beyond the seven are left out.", path, left_out)
    return labels


def _stated(names: np.ndarray) -> dict[str, str] | None:
    """The folders at the top of a tree that are named after splits, where train and test are among them."""
    top = {PurePosixPath(name).parts[0] for name in names}
    found = {split: folder for folder in sorted(top) for split, known in FOLDERS.items() if folder.lower() in known}
    return found if {"train", "test"} <= found.keys() else None


def _split_by_folder(names: np.ndarray, labels: np.ndarray, path: Path, splits: dict[str, str]) -> np.ndarray:
    """Index into SPLITS by stated folders, int64 [n], -1 outside all; test and val not stated are held out of train."""
    if (unknown := sorted(set(splits) - set(SPLITS))) or "train" not in splits:
        raise DataError(f"`splits` {'names ' + ', '.join(unknown) if unknown else 'lacks train'}: name folders for "
                        "train and, where you have them, test and val.")
    split = np.full(len(names), -1)
    for name, folder in splits.items():
        prefix = PurePosixPath(folder).as_posix().strip("/") + "/"
        here = np.array([prefix == "./" or file.startswith(prefix) for file in names], bool)
        if not here.any():
            raise DataError(f"{path} holds no images of the seven emotions in {folder!r}, stated as the split "
                            f"{name!r}: correct `splits`.")
        if (split[here] >= 0).any():
            raise DataError(f"`splits` puts images of {folder!r} into two splits: state folders of {path} that do not "
                            "hold each other.")
        split[here] = SPLITS.index(name)
    for name, share in (("test", 0.2), ("val", 0.1)):
        if name not in splits:
            train = np.flatnonzero(split == 0)
            held, how = _held_out(names[train], labels[train], share)
            split[train[held]] = SPLITS.index(name)
            log.warning("%s has no folder for %s: %d of %d training images are held out for it, drawn %s with seed 0.",
                        path, name, held.sum(), len(held), how)
    if left_out := np.count_nonzero(split < 0):
        log.warning("%s: %d images outside the stated folders are left out.", path, left_out)
    return split


def _held_out(names: np.ndarray, labels: np.ndarray, share: float) -> tuple[np.ndarray, str]:
    """A seeded share of faces, bool [n], per emotion, or of whole persons where file names start with one; and how."""
    generator = np.random.default_rng(0)
    persons = [PERSON.match(PurePosixPath(name).name) for name in names]
    if len(names) and all(persons):
        persons = np.array([match[0] for match in persons])
        known = np.unique(persons)
        return np.isin(persons, generator.permutation(known)[:max(1, round(share * len(known)))]), "by person"
    held = np.zeros(len(names), bool)
    for emotion in range(len(EMOTIONS)):
        here = generator.permutation(np.flatnonzero(labels == emotion))
        held[here[:max(round(share * len(here)), len(here) > 1)]] = True  # one at least, but never the only one
    return held, "per emotion"


def _decoded(readers: list[Callable[[], bytes]], names: np.ndarray, path: Path) -> np.ndarray:
    """Images in grey at 48x48, uint8 [n, 48, 48]; every file that is no readable image is listed in one DataError."""
    images, unreadable = np.zeros((len(readers), SIZE, SIZE), np.uint8), []
    for i, read in enumerate(readers):
        try:
            with Image.open(BytesIO(read())) as picture:
                if picture.mode.startswith("I"):  # 16 bits a pixel, which convert("L") would clip
                    picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
                picture = picture.convert("L")
            if picture.size != (SIZE, SIZE):
                picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            images[i] = picture
        except UNREADABLE:
            unreadable.append(str(names[i]))
    if unreadable:
        listed = ", ".join(unreadable[:20]) + (", .." if len(unreadable) > 20 else "")
        raise DataError(f"{path} holds {len(unreadable)} unreadable images ({listed}): fetch them again or delete "
                        "them.")
    return images


# ---- what comes with FER2013: votes and MaskFer's rows ----

@dataclass(frozen=True)
class Votes:
    """FER+ votes of N faces, in the order of the faces."""

    counts: np.ndarray     # int64 [N, 10] votes for each of FERPLUS
    plurality: np.ndarray  # int64 [N] the one column with most votes over all ten, -1 where several share the lead
    agree: np.ndarray      # bool [N] the plurality is the face's own label; a tie never is

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of the counts."""
        return hashlib.sha256(np.ascontiguousarray(self.counts.astype("<i8")).tobytes()).hexdigest()[:8]

    def shares(self, labels: np.ndarray) -> np.ndarray:
        """Share of the votes for the seven emotions that each has, float32 [N, 7]; a face without such a vote keeps its label [N]."""
        known = FERPLUS_EMOTION >= 0
        counts = np.zeros((len(self.counts), len(EMOTIONS)), np.float32)
        counts[:, FERPLUS_EMOTION[known]] = self.counts[:, known]
        none = counts.sum(1) == 0
        counts[none, labels[none]] = 1
        return counts / counts.sum(1, keepdims=True)


def votes(path: str | Path, faces: Faces) -> Votes:
    """FER+ votes (fer2013new.csv: Usage, name, ten columns of votes; one line per face in the order of fer2013.csv).

    `faces` may be all of FER2013 or a selection: paired by `faces.row`. Raises DataError when rows or Usage do not fit.
    Source: Barsoum et al. 2016, https://arxiv.org/abs/1608.01041.
    """
    table = _table(path, ("Usage", *FERPLUS), "FER+'s fer2013new.csv")
    try:
        counts = table[list(FERPLUS)].to_numpy(np.int64)  # [rows of the csv, 10]
    except ValueError as error:
        raise DataError(f"{path} has votes that are not whole numbers ({error}): use FER+'s fer2013new.csv as it "
                        "came.") from error
    if (counts < 0).any():
        row = np.flatnonzero((counts < 0).any(1))[0]
        raise DataError(f"{path} has negative votes, first in row {row}: use FER+'s fer2013new.csv as it came.")
    _paired(path, faces)
    if len(table) not in (len(faces), OFFICIAL.sum()) or faces.row.max() >= len(table):
        raise DataError(f"{path} has votes for {len(table)} faces, not for the {len(faces)} given: use the file that "
                        "belongs to them.")
    usage = pd.Categorical(table["Usage"], USAGES).codes  # -1: unknown
    if len(off := np.flatnonzero(usage[faces.row] != faces.split)):
        row = faces.row[off[0]]
        raise DataError(f"{path} puts row {row} into {table['Usage'][row]!r}, the faces have it in "
                        f"{USAGES[faces.split[off[0]]]!r} ({len(off)} such rows): use the file that belongs to these "
                        "faces, in its own order.")
    counts = counts[faces.row]                                                   # [N, 10]
    tie = (counts == counts.max(1, keepdims=True)).sum(1) > 1
    plurality = np.where(tie, -1, counts.argmax(1))                              # [N]
    return Votes(counts, plurality, ~tie & (FERPLUS_EMOTION[plurality] == faces.labels))


def maskfer_rows(path: str | Path, faces: Faces) -> np.ndarray:
    """Faces that the first paper's author could mask, bool [N]. Raises DataError.

    The file has the header `row` and then one row of fer2013.csv a line.
    """
    table = _table(path, ("row",), "maskfer_rows.csv")
    _paired(path, faces)
    rows = pd.to_numeric(table["row"], errors="coerce").to_numpy(float)
    wrong = ~(np.isfinite(rows) & (rows == np.floor(rows)) & (rows >= 0) & (rows < OFFICIAL.sum()))
    if wrong.any():
        raise DataError(f"{path}, line {np.flatnonzero(wrong)[0] + 2}: {table['row'][wrong].iloc[0]!r} is no row of "
                        f"fer2013.csv (0 to {OFFICIAL.sum() - 1}): use maskfer_rows.csv as it came.")
    return np.isin(faces.row, rows.astype(np.int64))


def _table(path: str | Path, columns: tuple[str, ...], what: str) -> pd.DataFrame:
    """A small csv that must have `columns`, as a frame."""
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist: give the path of {what}.")
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path} cannot be read as a csv ({str(error).strip()}): use {what}.") from error
    if missing := [column for column in columns if column not in table]:
        raise DataError(f"{path} has no column {', '.join(missing)}: use {what}.")
    return table


def _paired(path: str | Path, faces: Faces) -> None:
    if faces.source != "fer2013":
        raise DataError(f"{path} belongs to rows of fer2013.csv, the faces come from {faces.source!r}: load "
                        "fer2013.csv, or leave the file out.")


# ---- integrity ----

EXPECTED = {  # what FER2013 itself holds: (check, split, emotion) -> value
    **{("faces", split, emotion): n for split, line in zip(SPLITS, OFFICIAL) for emotion, n in zip(EMOTIONS, line)},
    **{("faces", split, "all"): n for split, n in zip(SPLITS, OFFICIAL.sum(1))},
    **{("faces", "all", emotion): n for emotion, n in zip(EMOTIONS, OFFICIAL.sum(0))},
    ("faces", "all", "all"): OFFICIAL.sum(),
    ("blank", "all", "all"): 12, ("conflicting_groups", "all", "all"): 56,
    ("copies_in_train", "test", "all"): 288, ("copies_in_train", "test", "disgust"): 16,
    ("copies_in_train", "test", "surprise"): 118, ("copies_in_train", "val", "all"): 279,
    ("copies_in_val", "test", "all"): 44, ("clean", "test", "all"): 3275, ("clean", "test", "disgust"): 38,
    ("ferplus_agree", "test", "all"): 0.612, ("ferplus_agree", "test", "fear"): 0.13,
    ("ferplus_agree", "test", "disgust"): 0.29, ("ferplus_agree", "test", "sad"): 0.38,
    ("ferplus_agree", "test", "happy"): 0.92,
}


def integrity(faces: Faces, votes: Votes | None = None) -> pd.DataFrame:
    """One line per check, split and emotion: columns check, split, emotion (both with "all"), value, expected.

    expected is what FER2013 itself holds (fractions rounded to 0.01, the total to 0.001), NaN where nothing is known or
    the source is another. Values are numbers of faces unless said; blank images count only as faces, blank and clean.

    faces               all of them
    blank               all pixels of one value
    copies_in_train     faces of another split with a pixel copy in train; copies_in_val likewise, for test
    copies_within       with a pixel copy in their own split
    clean               with no pixel copy in an earlier split
    conflicting         with a pixel copy, anywhere, that carries another label
    conflicting_groups  number of groups of copies whose labels differ
    ferplus_agree       fraction whose label is FER+'s unique plurality; ferplus_tie: fraction that has none
    """
    seen = ~faces.blank
    in_split = faces.split[:, None] == np.arange(len(SPLITS))              # [N, 3]
    copy_of = [np.isin(faces.copies, faces.copies[seen & inside]) & seen for inside in in_split.T]  # 3 of [N]
    of_train, of_val = copy_of[0] & ~in_split[:, 0], copy_of[1] & in_split[:, 2]                    # [N], [N]
    pairs = pd.DataFrame({"group": faces.copies, "split": faces.split, "label": faces.labels})
    within = seen & (pairs.groupby(["group", "split"])["label"].transform("size").to_numpy() > 1)
    conflicting = seen & (pairs.groupby("group")["label"].transform("nunique").to_numpy() > 1)
    flags = {"faces": np.ones(len(faces), bool), "blank": faces.blank, "copies_in_train": of_train,
             "copies_in_val": of_val, "copies_within": within, "clean": ~(of_train | of_val),
             "conflicting": conflicting}
    frames = [_counted(faces, check, flag, np.sum) for check, flag in flags.items()]
    frames.append(pd.DataFrame({"check": ["conflicting_groups"], "split": ["all"], "emotion": ["all"],
                                "value": [len(np.unique(faces.copies[conflicting]))]}))
    if votes is not None:
        if len(votes.agree) != len(faces):
            raise ValueError(f"votes are for {len(votes.agree)} faces, not {len(faces)}: read them for the same faces.")
        frames.append(_counted(faces, "ferplus_agree", votes.agree, _share))
        frames.append(_counted(faces, "ferplus_tie", votes.plurality < 0, _share))
    tidy = pd.concat(frames, ignore_index=True).astype({"value": float})
    known = EXPECTED if faces.source == "fer2013" else {}
    tidy["expected"] = [float(known.get(key, np.nan)) for key in zip(tidy["check"], tidy["split"], tidy["emotion"])]
    return tidy


def _share(flag: np.ndarray) -> float:
    return flag.mean() if len(flag) else np.nan


def _counted(faces: Faces, check: str, flag: np.ndarray, measure: Callable) -> pd.DataFrame:
    """measure(flag) (bool [N]) per split and emotion and over all of either; columns check, split, emotion, value."""
    every = np.ones(len(faces), bool)
    splits = {**{name: faces.split == i for i, name in enumerate(SPLITS)}, "all": every}
    emotions = {**{name: faces.labels == i for i, name in enumerate(EMOTIONS)}, "all": every}
    return pd.DataFrame([(check, split, emotion, float(measure(flag[here & those])))
                         for split, here in splits.items() for emotion, those in emotions.items()],
                        columns=["check", "split", "emotion", "value"])


def report(faces: Faces, votes: Votes | None = None) -> dict[str, pd.DataFrame]:
    """What a data set holds, as frames.

    source     one line: source, faces, fingerprint
    integrity  tidy, see there
    counts     faces, split x emotion
    copies     duplicates, clean splits, conflicts and blanks, (check, split) x emotion
    agreement  with votes: fraction that agrees with FER+, split x emotion
    """
    tidy = integrity(faces, votes)
    source = {"source": [faces.source], "faces": [len(faces)], "fingerprint": [faces.fingerprint]}
    about_copies = ["copies_in_train", "copies_in_val", "copies_within", "clean", "conflicting", "blank"]
    frames = {"source": pd.DataFrame(source), "integrity": tidy,
              "counts": _wide(tidy, ["faces"], int).droplevel("check"), "copies": _wide(tidy, about_copies, int)}
    if votes is not None:
        frames["agreement"] = _wide(tidy, ["ferplus_agree"], float).droplevel("check")
    return frames


def _wide(tidy: pd.DataFrame, checks: list[str], kind: type) -> pd.DataFrame:
    """Values of some checks, one line per check and split, one column per emotion, in the order of SPLITS, EMOTIONS."""
    wide = tidy[tidy["check"].isin(checks)].pivot(index=["check", "split"], columns="emotion", values="value")
    return wide.reindex(index=pd.MultiIndex.from_product((checks, (*SPLITS, "all")), names=["check", "split"]),
                        columns=[*EMOTIONS, "all"]).astype(kind)
