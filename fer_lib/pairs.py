"""Paired pictures: the same person's face with and without a real mask, and the folds by person that such data is studied in.

    write_folds("msd_e/pairs.csv", n_folds=10)       # pairs_fold0.csv .. pairs_fold9.csv beside it: the same rows with a column split
    pairs = read_pairs("msd_e/pairs_fold0.csv")      # faces (the unmasked pictures), masked uint8 [N, 48, 48], person str [N]

A csv lies beside the pictures, one pair a row: person,emotion,unmasked,masked and perhaps split (train, val or test). The last two
columns of the four are paths of pictures relative to the csv, cut to the face as FER2013's are; they become grey 48x48 as image folders
do in fer2013.py. Persons are any names. An example is MSD-E (Sola & Gera 2023, https://arxiv.org/abs/2304.03867): 142 people, ten folds.

Identity of a face (`Faces.row`): its place when the rows are sorted by person and unmasked picture, the same in every fold. Anything
wrong with the input raises fer2013.DataError, one sentence that says what and how to mend it; nothing is written then.
"""
import csv
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from .faces import EMOTIONS, SPLITS, Faces, named_after
from .fer2013 import SYNONYMS, DataError, _at, _decoded

log = logging.getLogger(__name__)

COLUMNS = ("person", "emotion", "unmasked", "masked")


class Pairs(NamedTuple):
    """N pairs of pictures, sorted by person and unmasked picture."""

    faces: Faces        # the unmasked pictures; the source is the folder's name
    masked: np.ndarray  # uint8 [N, 48, 48]
    person: np.ndarray  # str [N]


def holds_pairs(path: str | Path) -> bool:
    """Whether `path` is a csv whose first line speaks of masked pictures, which no form of FER2013 does."""
    path = Path(path).expanduser()
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return b"masked" in file.readline(4096)


def read_pairs(path: str | Path) -> Pairs:
    """The pairs of a csv that has a column split. Raises DataError, also when a split is empty or two of them share a person."""
    path = Path(path).expanduser()
    frame, labels = _rows(path)
    if "split" not in frame:
        raise DataError(f"{path} has no column split: `python -m fer_lib folds {path}` writes files that have one, by person.")
    if len(odd := frame["split"][~frame["split"].isin(SPLITS)]):
        raise DataError(f"{path} has the split {_few(odd)}: use {', '.join(SPLITS)}.")
    if empty := [split for split in SPLITS if split not in set(frame["split"])]:
        raise DataError(f"{path} holds no pictures of the split {_few(empty)}: all of {', '.join(SPLITS)} are needed.")
    shared = frame.groupby("person")["split"].nunique() > 1
    if shared.any():
        raise DataError(f"{path} has the person {_few(shared.index[shared])} in more than one split: give each person to one.")
    folder = Path(os.path.abspath(path)).parent
    names = np.concatenate([frame["unmasked"], frame["masked"]])
    unmasked, masked = np.split(_decoded([(folder / name).read_bytes for name in names], names, path), 2)  # (N, 48, 48) each
    split = np.array([SPLITS.index(name) for name in frame["split"]], np.uint8)
    source = named_after(folder.name, "pairs")
    return Pairs(Faces(unmasked, labels, split, np.arange(len(frame)), source), masked, frame["person"].to_numpy(str))


def write_folds(path: str | Path, n_folds: int = 10, seed: int = 0) -> list[Path]:
    """Writes <name>_fold0.csv .. beside the csv, one a fold: the same rows with test = fold k, val = fold k + 1, train = the rest.

    A person is in one fold. The largest persons come first (those of one size in an order drawn by `seed`), each into the fold with
    fewest pictures; among such, into the one that has fewest of this person's emotions. The order of rows plays no part, a column split
    that is there is replaced, files of that name too. Returns their paths; raises DataError, OSError.
    """
    path = Path(path).expanduser()
    frame, labels = _rows(path)
    known, person = np.unique(frame["person"].to_numpy(str), return_inverse=True)
    if n_folds < len(SPLITS) or len(known) < n_folds:
        raise DataError(f"{path} has pictures of {len(known)} persons, for which {n_folds} folds do not do: use at least {len(SPLITS)} folds "
                        "and no more than there are persons.")
    counts = np.zeros((len(known), len(EMOTIONS)), np.int64)
    np.add.at(counts, (person, labels), 1)
    drawn = np.random.default_rng(seed).permutation(len(known))
    fold, held = np.zeros(len(known), np.int64), np.zeros((n_folds, len(EMOTIONS)), np.int64)
    for one in drawn[np.argsort(-counts[drawn].sum(1), kind="stable")]:
        fold[one] = np.lexsort((held @ counts[one], held.sum(1)))[0]
        held[fold[one]] += counts[one]
    parts = np.array(["test", "val"] + ["train"] * (n_folds - 2))
    files = [path.with_name(f"{path.stem}_fold{k}.csv") for k in range(n_folds)]
    temporary = [file.with_name(f"{file.name}.{os.getpid()}.part") for file in files]
    try:
        for k, file in enumerate(temporary):
            frame.assign(split=parts[(fold[person] - k) % n_folds]).to_csv(file, index=False, lineterminator="\n")
        for file, whole in zip(temporary, files):
            os.replace(file, whole)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)
    return files


def _rows(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The csv as text, sorted by person and unmasked picture, and its labels, uint8 [N]; every picture exists and is named once."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: give the path of a csv with the columns {', '.join(COLUMNS)}.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *lines = [[field.strip() for field in line] for line in csv.reader(file) if any(map(str.strip, line))] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a csv ({error}): save it as UTF-8 with commas.") from error
    if wrong := [column for column in dict.fromkeys([*COLUMNS, *header]) if header.count(column) != 1]:
        raise DataError(f"{path} has not exactly one column {' and '.join(wrong)} (its first line is {','.join(header)[:80]!r}): the first line "
                        f"is {','.join(COLUMNS)}, perhaps split, and other names once each.")
    if ragged := [i for i, line in enumerate(lines) if len(line) != len(header)]:
        raise DataError(f"{path}, {_at(ragged[0])}: {len(lines[ragged[0]])} fields where the header has {len(header)}; quote those with commas.")
    frame = pd.DataFrame(lines, columns=header)
    emotion = frame["emotion"].str.lower()
    if len(unknown := frame["emotion"][~emotion.isin(list(SYNONYMS))]):
        raise DataError(f"{path} has the emotion {_few(unknown)}: use {', '.join(EMOTIONS)}.")
    frame = frame[emotion.map(SYNONYMS).notna()].sort_values(["person", "unmasked"], ignore_index=True)
    if len(frame) < len(lines):
        log.warning("%s: %d pairs of contempt are left out.", path, len(lines) - len(frame))
    if frame.empty or (frame[list(COLUMNS)] == "").any(axis=None):
        raise DataError(f"{path} has {'a header but no pairs' if frame.empty else 'an empty field'}: fill in {', '.join(COLUMNS)}.")
    names = pd.concat([frame["unmasked"], frame["masked"]]).map(os.path.normpath)
    if names.duplicated().any():
        raise DataError(f"{path} names {_few(names[names.duplicated()])} more than once: each picture belongs to one row and column.")
    if lost := [name for name in names if not (path.parent / name).is_file()]:
        raise DataError(f"{path} names {len(lost)} pictures that are not there ({_few(lost)}): paths are relative to the csv.")
    return frame, np.array([EMOTIONS.index(SYNONYMS[name.lower()]) for name in frame["emotion"]], np.uint8)


def _few(names: Iterable[str], most: int = 5) -> str:
    """The first few of the different names, as part of a sentence."""
    names = sorted(set(names))
    return ", ".join(map(repr, names[:most])) + (", .." if len(names) > most else "")
