"""Paired pictures: pairs stay together, people stay in one fold, each way a csv can be wrong, and the Dataset made of them."""
import csv
import random
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fer_lib.dataset as dataset
from fer_lib.dataset import open_dataset
from fer_lib.faces import EMOTIONS
from fer_lib.fer2013 import DataError, load
from fer_lib.landmarks import template
from fer_lib.masking import draw_masks
from fer_lib.pairs import COLUMNS, holds_pairs, read_pairs, write_folds

EACH = {"anna": 5, "ben": 4, "cleo": 3, "dora": 3, "emil": 2, "finn": 1}  # pairs a person: 18
SPLIT_OF = {"anna": "train", "ben": "train", "cleo": "train", "dora": "train", "emil": "val", "finn": "test"}


def drawn(name: str) -> np.ndarray:
    """The picture that belongs to a name, uint8 [48, 48]."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (48, 48), dtype=np.uint8)


def row(person: str, i: int, emotion: str | None = None) -> dict[str, str]:
    return {"person": person, "emotion": emotion or EMOTIONS[i % 7], "unmasked": f"bare/{person}{i}.png", "masked": f"with/{person}{i}_m.png"}


ROWS = [row(person, i) for person, n in EACH.items() for i in range(n)]
SPLIT = [{**one, "split": SPLIT_OF[one["person"]]} for one in ROWS]


def write(folder, rows=ROWS, name="pairs.csv", header=None):
    """A csv of `rows` in `folder`, with a picture for each name."""
    for one in rows:
        for picture in (one["unmasked"], one["masked"]):
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn(picture)).save(folder / picture)
    with open(folder / name, "w", newline="") as file:
        out = csv.DictWriter(file, header or list(rows[0]), extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    return folder / name


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "msd_e").mkdir()
    return tmp_path / "msd_e"


# ---- reading ----

def test_pairs_stay_paired(folder):
    pairs = read_pairs(write(folder, random.Random(0).sample(SPLIT, len(SPLIT))))
    known = sorted(SPLIT, key=lambda one: (one["person"], one["unmasked"]))
    assert np.array_equal(pairs.faces.images, [drawn(one["unmasked"]) for one in known])
    assert np.array_equal(pairs.masked, [drawn(one["masked"]) for one in known]) and pairs.masked.dtype == np.uint8
    assert pairs.person.tolist() == [one["person"] for one in known] and pairs.faces.source == "msd_e"
    assert [EMOTIONS[label] for label in pairs.faces.labels] == [one["emotion"] for one in known]
    assert pairs.faces.counts().sum(1).tolist() == [15, 2, 1] and pairs.faces.row.tolist() == list(range(18))


def test_order_of_rows_does_not_matter(folder):
    first = read_pairs(write(folder, SPLIT))
    second = read_pairs(write(folder, SPLIT[::-1]))
    assert first.faces.fingerprint == second.faces.fingerprint and np.array_equal(first.masked, second.masked)


def test_pictures_become_what_an_image_folder_makes_of_them(folder):
    rng = np.random.default_rng(0)
    odd = {"Training_0": Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)),
           "PublicTest_0": Image.fromarray(rng.integers(0, 65536, (60, 80)).astype(np.uint16)),
           "PrivateTest_0": Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8))}
    rows = [{**row(person, 0), "masked": f"tree/sad/{name}.png", "split": split} for person, split, name in zip("abc", ("train", "val", "test"), odd)]
    path = write(folder, rows)
    for name, picture in odd.items():
        picture.save(folder / f"tree/sad/{name}.png")
    assert np.array_equal(read_pairs(path).masked, load(folder / "tree").images)


def test_emotions_have_synonyms_and_contempt_is_left_out(folder, caplog):
    rows = [{**row(person, i, emotion), "split": split} for person, split in zip("abc", ("train", "val", "test"))
            for i, emotion in enumerate(("Happiness", "anger", "contempt"))]
    pairs = read_pairs(write(folder, rows))
    assert pairs.faces.labels.tolist() == [EMOTIONS.index("happy"), EMOTIONS.index("angry")] * 3 and "3 pairs of contempt" in caplog.text


def test_names_that_look_like_numbers_stay_names(folder):
    rows = [{**row(person, 0), "split": split} for person, split in zip(("01", "1", "NA"), ("train", "val", "test"))]
    assert read_pairs(write(folder, rows)).person.tolist() == ["01", "1", "NA"]


def test_csv_of_a_spreadsheet_is_read(folder):
    path = write(folder, SPLIT)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b",,,,\r\n")
    assert len(read_pairs(path).faces) == 18


@pytest.mark.parametrize("name", ["fer2013", "fer2013_images", "synthetic"])
def test_folder_never_passes_for_fer2013_or_synthetic_faces(name, tmp_path):
    (tmp_path / name).mkdir()
    assert read_pairs(write(tmp_path / name, SPLIT)).faces.source == f"{name}_pairs"


def test_source_is_the_folder_even_when_it_is_the_working_directory(folder, monkeypatch):
    write(folder, SPLIT)
    monkeypatch.chdir(folder)
    assert read_pairs("pairs.csv").faces.source == "msd_e"


# ---- folds ----

def folds_of(path, n_folds, **kwargs) -> list[pd.DataFrame]:
    return [pd.read_csv(file) for file in write_folds(path, n_folds, **kwargs)]


@pytest.mark.parametrize("n_folds", [3, 4, 6])
def test_folds_share_no_person_and_cover_each_picture_once_as_test_and_as_validation(n_folds, folder):
    frames = folds_of(write(folder), n_folds)
    assert len(frames) == n_folds
    for frame in frames:
        assert (frame.groupby("person")["split"].nunique() == 1).all() and set(frame["split"]) == {"train", "val", "test"}
    for split in ("test", "val"):
        named = pd.concat([frame.loc[frame["split"] == split, "unmasked"] for frame in frames])
        assert sorted(named) == sorted(one["unmasked"] for one in ROWS)
    for frame, following in zip(frames, frames[1:] + frames[:1]):
        assert (frame["split"] == "val").tolist() == (following["split"] == "test").tolist()


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_even_in_number_of_pictures(seed, folder):
    assert [(frame["split"] == "test").sum() for frame in folds_of(write(folder), 3, seed=seed)] == [6, 6, 6]


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_one_size_are_even_in_emotions(seed, folder):
    rows = [row(person, i, emotion) for i, (person, emotion) in enumerate(zip("abcdef", 3 * ["happy", "sad"]))]
    for frame in folds_of(write(folder, rows), 3, seed=seed):
        assert sorted(frame.loc[frame["split"] == "test", "emotion"]) == ["happy", "sad"]


def test_folds_are_the_same_whatever_the_order_of_rows_and_differ_with_the_seed(folder):
    rows = [row(person, 0) for person in "abcdefghijkl"]
    first = [file.read_bytes() for file in write_folds(write(folder, rows), 3)]
    again = [file.read_bytes() for file in write_folds(write(folder, rows[::-1]), 3)]
    other = [file.read_bytes() for file in write_folds(write(folder, rows), 3, seed=1)]
    assert first == again != other


def test_folds_are_read_back_with_the_same_rows_and_other_columns_kept(folder):
    path = write(folder, [{**one, "age": "30", "split": "train"} for one in ROWS])  # the split that is there is replaced
    whole = path.read_bytes()
    first, *_, last = [read_pairs(file) for file in write_folds(path, 6)]
    assert np.array_equal(first.faces.images, last.faces.images) and np.array_equal(first.faces.row, last.faces.row)
    assert first.faces.fingerprint != last.faces.fingerprint
    assert "age" in pd.read_csv(folder / "pairs_fold0.csv") and path.read_bytes() == whole
    assert sorted(file.name for file in folder.iterdir()) == ["bare", "pairs.csv", *(f"pairs_fold{k}.csv" for k in range(6)), "with"]


def test_folds_that_cannot_be_written_leave_nothing_behind(folder, monkeypatch):
    path, to_csv, calls = write(folder), pd.DataFrame.to_csv, []

    def full(frame, file, **kwargs):
        calls.append(file)
        to_csv(frame, file, **kwargs)
        if len(calls) == 3:
            raise OSError("the disk is full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="full"):
        write_folds(path, 6)
    assert sorted(file.name for file in folder.iterdir()) == ["bare", "pairs.csv", "with"]


# ---- bad input ----

def changed(i, rows=SPLIT, **values):
    return [{**one, **values} if j == i else one for j, one in enumerate(rows)]


def without(folder, *names, content=None):
    path = write(folder, SPLIT)
    for name in names:
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    return path


def text(folder, content: bytes):
    (folder / "pairs.csv").write_bytes(content)
    return folder / "pairs.csv"


HEADER = ",".join(COLUMNS).encode()
BOTH = {  # refused by read_pairs and by write_folds
    "missing file": (lambda d: d / "pairs.csv", "does not exist"),
    "empty": (lambda d: text(d, b""), "not exactly one column person and emotion and unmasked and masked"),
    "missing column": (lambda d: write(d, SPLIT, header=[c for c in SPLIT[0] if c != "masked"]), "not exactly one column masked .*'person,emotion"),
    "column twice": (lambda d: text(d, HEADER + b",masked\na,sad,x.png,y.png,z.png\n"), "not exactly one column masked"),
    "semicolons": (lambda d: text(d, HEADER.replace(b",", b";") + b"\n"), "its first line is 'person;emotion;unmasked;masked'"),
    "no csv at all": (lambda d: text(d, bytes(range(256))), "cannot be read as a csv"),
    "header only": (lambda d: text(d, HEADER + b"\n\n"), "no pairs"),
    "short row": (lambda d: text(d, HEADER + b"\na,sad,x.png\n"), "row 0 .*3 fields where the header has 4"),
    "long row": (lambda d: text(d, HEADER + b"\na,sad,x.png,y.png,train\n"), "row 0 .*5 fields"),
    "nameless person": (lambda d: write(d, changed(3, person="")), "empty field"),
    "unknown emotion": (lambda d: write(d, changed(3, emotion="bored")), "emotion 'bored': use angry, disgust, fear, happy, sad, surprise, neutral"),
    "duplicate row": (lambda d: write(d, [*SPLIT, SPLIT[0]]), "'bare/anna0.png', 'with/anna0_m.png' more than once"),
    "picture of two people": (lambda d: write(d, changed(17, unmasked="bare/../bare/anna0.png")), "'bare/anna0.png' more than once"),
    "picture paired with itself": (lambda d: write(d, changed(17, masked="bare/finn0.png")), "'bare/finn0.png' more than once"),
    "missing pictures": (lambda d: without(d, "bare/anna1.png", "with/finn0_m.png"), "2 pictures .*'bare/anna1.png', 'with/finn0_m.png'"),
    "all pictures missing": (lambda d: without(d, *(one["masked"] for one in SPLIT)), "18 pictures .*'with/anna4_m.png', .."),
}
READ = {
    "no split": (lambda d: write(d), r"no column split: `python -m fer_lib folds .*pairs.csv`"),
    "unknown split": (lambda d: write(d, changed(3, split="valid")), "split 'valid': use train, val, test"),
    "empty split": (lambda d: write(d, changed(17, split="val")), "no pictures of the split 'test'"),
    "person in two splits": (lambda d: write(d, changed(2, split="test")), "person 'anna' in more than one split"),
    "unreadable pictures": (lambda d: without(d, "bare/ben1.png", "with/ben0_m.png", content=b"no picture"),
                            "2 unreadable images .*bare/ben1.png, with/ben0_m.png"),
}
FOLDS = {
    "fewer persons than folds": (lambda d: write(d), 7, "6 persons, for which 7 folds"),
    "too few folds": (lambda d: write(d), 2, "2 folds do not do: use at least 3"),
}
CASES = [(case, do) for case in BOTH for do in ("read", "folds")] + [(case, "read") for case in READ] + [(case, "folds") for case in FOLDS]


@pytest.mark.parametrize("case, do", CASES)
def test_bad_input_is_one_sentence_and_nothing_is_written(case, do, folder):
    make, *n_folds, says = {**BOTH, **READ, **FOLDS}[case]
    path = make(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError, match=says) as error:
        read_pairs(path) if do == "read" else write_folds(path, *n_folds or [3])
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and sorted(folder.rglob("*")) == before


# ---- the data set ----

@pytest.fixture
def marked(monkeypatch):
    """Landmarks that are the template whether or not there is a detector."""
    monkeypatch.setattr(dataset, "for_faces", lambda faces: template(len(faces)))


def test_dataset_has_real_masked_faces_and_the_region_of_drawn_ones(folder, marked):
    path = write(folder, SPLIT)
    pairs, found = read_pairs(path), open_dataset(path, cache=folder / "cache")
    assert np.array_equal(found.faces.images, pairs.faces.images) and np.array_equal(found.images("masked"), pairs.masked)
    masks, region = draw_masks(pairs.faces.images, template(18).points, pairs.faces.row)
    assert np.array_equal(found.mask_region, region) and found.synthetic is None and found.versions.keys() == {"masks"}
    assert len(found.labels("test")) == 1 and found.subsets("test")["clean"].all()
    again = open_dataset(path, cache=folder / "cache")  # the kept masks are the drawn ones, and are not taken for real
    assert np.array_equal(again.masked, pairs.masked) and again.fingerprint == found.fingerprint
    assert found.fingerprint != replace(found, masked=masks).fingerprint


def test_fingerprint_changes_with_a_masked_picture(folder, marked):
    path = write(folder, SPLIT)
    first = open_dataset(path)
    Image.fromarray(255 - drawn("with/finn0_m.png")).save(folder / "with/finn0_m.png")
    second = open_dataset(path)
    assert first.faces.fingerprint == second.faces.fingerprint and first.fingerprint != second.fingerprint


def test_votes_and_author_rows_are_refused_for_pairs(folder, marked):
    path = write(folder, SPLIT)
    (folder / "maskfer_rows.csv").write_text("row\n3\n")
    (folder / "fer2013new.csv").write_text("Usage,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
                                           + 18 * "Training,10,0,0,0,0,0,0,0,0,0\n")
    for name, option in (("maskfer_rows.csv", "author_rows"), ("fer2013new.csv", "votes_path")):
        with pytest.raises(DataError, match=f"{name} belongs to rows of fer2013.csv, the faces come from 'msd_e'"):
            open_dataset(path, cache=folder / "cache", **{option: folder / name})
    assert not (folder / "cache").exists()


def test_only_a_csv_that_speaks_of_masked_pictures_holds_pairs(folder):
    (folder / "fer2013.csv").write_text("emotion,pixels,Usage\n")
    assert holds_pairs(write(folder)) and not any(map(holds_pairs, (folder, folder / "fer2013.csv", folder / "none.csv", folder / "bare/anna0.png")))


def test_dataset_tells_which_column_pairs_lack(folder):
    with pytest.raises(DataError, match="not exactly one column unmasked"):
        open_dataset(write(folder, SPLIT, header=["person", "emotion", "masked", "split"]))
