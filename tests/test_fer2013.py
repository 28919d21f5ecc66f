"""Every form in which FER2013 comes, every way in which it can be broken, its cache, votes and integrity report."""
import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lib import fer2013
from fer_lib.faces import EMOTIONS, SPLITS, Faces
from fer_lib.fer2013 import DataError, integrity, load, maskfer_rows, report, votes

N = 21  # made-up faces: one of each emotion in each split
LABELS = np.tile(np.arange(7), 3)
SPLIT = np.repeat(np.arange(3), 7)
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 48, 48), dtype=np.uint8)
IMAGES[0, 0, :6] = (0, 9, 10, 99, 100, 255)


def csv_text(images=IMAGES, labels=LABELS, split=SPLIT, columns=("emotion", "pixels", "Usage"), header=None, end="\n"):
    lines = [header or ",".join(columns)]
    for image, label, part in zip(images, labels, split):
        fields = {"emotion": str(label), "pixels": " ".join(map(str, image.ravel())), "Usage": fer2013.USAGES[part]}
        lines.append(",".join(fields[column] for column in columns))
    return (end.join(lines) + end).encode()


def write_csv(path, **kwargs):
    path.write_bytes(csv_text(**kwargs))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def picture(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def write_tree(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def named_tree(numbers=range(N)):
    return {f"{'train' if part == 0 else 'test'}/{EMOTIONS[label]}/{fer2013.USAGES[part]}_{number}.png": picture(image)
            for image, label, part, number in zip(IMAGES, LABELS, SPLIT, numbers)}


def tree(parts=("train", "test"), each=10, folders=EMOTIONS, size=48, prefix=""):
    made = np.random.default_rng(1)
    return {f"{part}/{folder}/{prefix}{i}.png": picture(made.integers(0, 256, (size, size), dtype=np.uint8))
            for part in parts for folder in folders for i in range(each)}


def same_faces(faces):
    assert np.array_equal(faces.images, IMAGES) and np.array_equal(faces.labels, LABELS)
    assert np.array_equal(faces.split, SPLIT) and np.array_equal(faces.row, np.arange(N))
    return True


ICML = dict(columns=("emotion", "Usage", "pixels"), header="emotion, Usage, pixels")
FORMS = {
    "csv": lambda d: write_csv(d / "fer2013.csv"),
    "windows line ends": lambda d: write_csv(d / "fer2013.csv", end="\r\n"),
    "no line end": lambda d: write_tree(d, {"fer2013.csv": csv_text().rstrip()}) / "fer2013.csv",
    "blank lines": lambda d: write_csv(d / "fer2013.csv", end="\n\n"),
    "byte order mark": lambda d: write_tree(d, {"fer2013.csv": b"\xef\xbb\xbf" + csv_text()}) / "fer2013.csv",
    "quoted": lambda d: write_tree(d, {"f.csv": csv_text().replace(b",", b'","').replace(b"\n", b'"\n"')}) / "f.csv",
    "icml": lambda d: write_csv(d / "icml_face_data.csv", **ICML),
    "gz": lambda d: write_tree(d, {"fer2013.csv.gz": gzip.compress(csv_text())}) / "fer2013.csv.gz",
    "xz": lambda d: write_tree(d, {"fer2013.csv.xz": lzma.compress(csv_text())}) / "fer2013.csv.xz",
    "bz2": lambda d: write_tree(d, {"fer2013.csv.bz2": bz2.compress(csv_text())}) / "fer2013.csv.bz2",
    "zip": lambda d: write_zip(d / "fer2013.csv.zip", {"fer2013.csv": csv_text(), "__MACOSX/fer2013.csv": b"x"}),
    "tar.gz": lambda d: write_tar(d / "fer2013.tar.gz", {"fer2013/README": b"read", "fer2013/fer2013.csv": csv_text()}),
    "folder with csv": lambda d: write_csv(d / "fer2013.csv").parent,
    "folder with tar": lambda d: write_tar(d / "fer2013.tar.gz", {"fer2013/fer2013.csv": csv_text()}).parent,
    "folder in folder": lambda d: write_tree(d, {"fer2013/fer2013.csv": csv_text()}),
    "folder with icml": lambda d: write_csv(d / "icml_face_data.csv", **ICML).parent,
    "image tree": lambda d: write_tree(d / "tree", named_tree()),
    "zipped image tree": lambda d: write_zip(d / "archive.zip", named_tree()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_faces(form, tmp_path):
    faces = load(FORMS[form](tmp_path))
    assert same_faces(faces)
    assert faces.source == ("fer2013_images" if "tree" in form else "fer2013")


@pytest.mark.parametrize("block", [10_000, 20_000, 1 << 22])
def test_parsing_does_not_depend_on_where_blocks_end(block, tmp_path, monkeypatch):
    monkeypatch.setattr(fer2013, "BLOCK", block)
    assert same_faces(load(write_csv(tmp_path / "fer2013.csv")))


def test_fast_and_slow_parsers_agree_and_the_fast_one_is_used(tmp_path, monkeypatch):
    texts = [line.split(b",")[1] for line in csv_text().split(b"\n")[1:-1]]
    assert np.array_equal(np.stack([fer2013._slow(text, "csv", 0) for text in texts]), IMAGES)
    monkeypatch.setattr(fer2013, "_slow", None)
    assert np.array_equal(fer2013._pixels(texts, "csv", 0), IMAGES)


def test_every_grey_value_is_parsed_beside_every_length():
    numbers = np.stack([np.arange(256), np.full(256, 7), np.arange(256)[::-1]]).T.ravel()  # [768], three times a face
    text = b" ".join(str(number).encode() for number in np.tile(numbers, 3))
    assert np.array_equal(fer2013._pixels([text, text], "csv", 0)[1].ravel(), np.tile(numbers, 3))


def test_unusual_spacing_and_leading_zeros_are_still_read():
    text = b"\t0255  " + b" ".join([b"07"] * (fer2013.PIXELS - 1)) + b" "
    assert fer2013._pixels([text], "csv", 0).ravel()[:2].tolist() == [255, 7]


# ---- bad input ----

def edited(line, change):
    """A csv whose line `line` (0 is the header) went through `change`."""
    lines = csv_text().split(b"\n")
    lines[line] = change(lines[line])
    return b"\n".join(lines)


def pixels(change):
    def apply(line):
        emotion, text, usage = line.split(b",")
        return b",".join((emotion, b" ".join(change(text.split())), usage))
    return apply


def swapped(index, value):
    return pixels(lambda numbers: numbers[:index] + [value] + numbers[index + 1:])


def linked_tar(path):
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("fer2013/fer2013.csv")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return path


def moved_pixel():
    lines = csv_text().split(b"\n")
    lines[3], lines[4] = pixels(lambda n: n[:-1])(lines[3]), pixels(lambda n: n + [b"1"])(lines[4])
    return b"\n".join(lines)


WHOLE = csv_text()
BROKEN_CSV = {
    "wrong columns": (b"a,b,c\n1,2,3\n", "no column emotion or pixels or Usage"),
    "no usage": (b"emotion,pixels\n1,2 3\n", "no column Usage"),
    "empty": (b"", "no column"),
    "header only": (b"emotion,pixels,Usage\n", "no faces"),
    "short row": (edited(4, pixels(lambda n: n[:-1])), "row 3 .*2303 pixels instead of 2304"),
    "long row": (edited(4, pixels(lambda n: n + [b"1"])), "row 3 .*2305 pixels"),
    "short and long row": (moved_pixel(), "row 2 .*2303 pixels"),
    "no pixels": (edited(1, pixels(lambda n: [])), "row 0 .*0 pixels"),
    "letters": (edited(5, swapped(7, b"x1")), "row 4 .*'x1' is not a whole number"),
    "fraction": (edited(5, swapped(7, b"0.5")), "row 4 .*'0.5' is not a whole number"),
    "256": (edited(6, swapped(0, b"256")), "row 5 .*256 lies outside 0..255"),
    "300": (edited(6, swapped(9, b"300")), "row 5 .*300 lies outside"),
    "999": (edited(6, swapped(2303, b"999")), "row 5 .*999 lies outside"),
    "1000": (edited(6, swapped(9, b"1000")), "row 5 .*1000 lies outside"),
    "very long number": (edited(6, swapped(9, b"1" * 6000)), "row 5 .*lies outside"),
    "negative": (edited(6, swapped(9, b"-1")), "row 5 .*-1 lies outside"),
    "unknown usage": (edited(9, lambda line: line.replace(b"PublicTest", b"Test")), "row 8 .*Usage is 'Test'"),
    "unknown label": (edited(2, lambda line: b"7" + line[1:]), "row 1 .*emotion is '7'"),
    "label in words": (edited(2, lambda line: b"sad" + line[1:]), "row 1 .*emotion is 'sad'"),
    "extra field": (edited(2, lambda line: line + b",1"), "row 1 .*4 fields where the header has 3"),
    "cut within pixels": (WHOLE[:len(WHOLE) // 2], r"row \d+ .*fields"),
    "cut within usage": (WHOLE[:-4], "row 20 .*Usage is 'PrivateT'"),
    "no test rows": (b"\n".join(WHOLE.split(b"\n")[:15]), "no faces of the split 'test'"),
    "no train rows": (b"\n".join([WHOLE.split(b"\n")[0]] + WHOLE.split(b"\n")[8:]), "no faces of the split 'train'"),
    "no csv at all": (bytes(range(1, 10)) * 200_000, "line of more than"),
}
SPOILT = {"test/sad/PrivateTest_90.jpg": b"no image", "test/sad/PrivateTest_91.png": picture(IMAGES[0])[:900]}
BROKEN = {
    "missing file": (lambda d: d / "nowhere.csv", {}, "does not exist"),
    "unknown ending": (lambda d: write_csv(d / "fer2013.parquet"), {}, "of no known form"),
    "gz cut": (lambda d: write_tree(d, {"f.csv.gz": gzip.compress(WHOLE)[:-9000]}) / "f.csv.gz", {}, "truncated"),
    "xz cut": (lambda d: write_tree(d, {"f.csv.xz": lzma.compress(WHOLE)[:-9000]}) / "f.csv.xz", {}, "truncated"),
    "bz2 cut": (lambda d: write_tree(d, {"f.csv.bz2": bz2.compress(WHOLE)[:-9000]}) / "f.csv.bz2", {}, "truncated"),
    "gz that is none": (lambda d: write_csv(d / "fer2013.csv.gz"), {}, "truncated or damaged"),
    "zip that is none": (lambda d: write_csv(d / "fer2013.csv.zip"), {}, "truncated or damaged"),
    "tar that is none": (lambda d: write_csv(d / "fer2013.tar.gz"), {}, "truncated or damaged"),
    "zip without csv": (lambda d: write_zip(d / "f.zip", {"readme.txt": b"x"}), {}, "holds neither"),
    "tar without csv": (lambda d: write_tar(d / "f.tar.gz", {"readme.txt": b"x"}), {}, "holds no fer2013.csv"),
    "zip that climbs": (lambda d: write_zip(d / "f.zip", {"fer2013.csv": WHOLE, "../e": b"x"}), {}, "points outside"),
    "zip with root": (lambda d: write_zip(d / "f.zip", {"/tmp/fer2013.csv": WHOLE}), {}, "points outside"),
    "zip with drive": (lambda d: write_zip(d / "f.zip", {"C:\\fer2013.csv": WHOLE}), {}, "points outside"),
    "zip with backslashes": (lambda d: write_zip(d / "f.zip", {"..\\fer2013.csv": WHOLE}), {}, "points outside"),
    "tar that climbs": (lambda d: write_tar(d / "f.tar.gz", {"a/../../fer2013.csv": WHOLE}), {}, "points outside"),
    "tar climbs later": (lambda d: write_tar(d / "f.tgz", {"fer2013.csv": WHOLE, "/e": b"x"}), {}, "points outside"),
    "tar with link": (lambda d: linked_tar(d / "f.tar.gz"), {}, "is a link"),
    "empty folder": (lambda d: d, {}, "holds neither"),
    "tree without names": (lambda d: write_tree(d, tree(parts=("left", "right"), each=1)), {}, "do not say the split"),
    "tree with some names": (lambda d: write_tree(d, named_tree() | {"train/sad/a.png": picture(IMAGES[0])}), {},
                             "1 of 22 file names, such as train/sad/a.png"),
    "same name twice": (lambda d: write_tree(write_tree(d, named_tree()) / "again", named_tree()).parent, {},
                        "more than once"),
    "numbered folders": (lambda d: write_tree(d, tree(each=1, folders="1234567")),
                         {"splits": {"train": "train", "test": "test"}}, "'1', '2'.*rafdb"),
    "strange folder": (lambda d: write_tree(d, tree(each=1, folders=("happy", "bored"))), {}, "'bored'"),
    "unknown layout": (lambda d: write_tree(d, tree(each=1)), {"emotions": "raf"}, "Unknown layout.*rafdb"),
    "unknown emotion": (lambda d: write_tree(d, tree(each=1)), {"emotions": {"sad": "bored"}}, "Unknown emotion bored"),
    "unknown split": (lambda d: write_tree(d, tree(each=1)), {"splits": {"train": "train", "valid": "test"}},
                      "names valid"),
    "no train folder": (lambda d: write_tree(d, tree(each=1)), {"splits": {"test": "test"}}, "lacks train"),
    "no such folder": (lambda d: write_tree(d, tree(each=1)), {"splits": {"train": "train", "test": "tset"}}, "'tset'"),
    "nested splits": (lambda d: write_tree(d, tree(each=1)), {"splits": {"train": ".", "test": "test"}}, "two splits"),
    "tree without test": (lambda d: write_tree(d, {k: v for k, v in named_tree().items() if "Private" not in k}), {},
                          "no faces of the split 'test'"),
    "unreadable images": (lambda d: write_tree(d, named_tree() | SPOILT), {},
                          "2 unreadable images .*PrivateTest_90.jpg, .*PrivateTest_91.png"),
    "splits for a csv": (lambda d: write_csv(d / "fer2013.csv"), {"splits": {"train": "train"}}, "leave `splits`"),
}
BROKEN |= {f"csv: {name}": (lambda d, text=text: write_tree(d, {"fer2013.csv": text}) / "fer2013.csv", {}, says)
           for name, (text, says) in BROKEN_CSV.items()}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_one_sentence_and_nothing_is_written(case, tmp_path):
    make, kwargs, says = BROKEN[case]
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data")
    with pytest.raises(DataError, match=says) as error:
        load(path, cache=tmp_path / "cache", **kwargs)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not (tmp_path / "cache").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("form", ["fer2013.tar.gz", "fer2013.csv.zip"])
def test_truncated_archive_is_told(form, cut, tmp_path):
    whole = (write_tar if "tar" in form else write_zip)(tmp_path / form, {"fer2013.csv": WHOLE}).read_bytes()
    (tmp_path / form).write_bytes(whole[:int(cut * len(whole))])
    with pytest.raises(DataError, match="truncated or damaged"):
        load(tmp_path / form)


# ---- cache ----

def test_second_load_maps_the_cache_and_gives_the_same(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "fer2013.csv")
    first = load(path, cache=tmp_path / "cache")
    monkeypatch.setattr(fer2013, "_read", None)
    second = load(path, cache=tmp_path / "cache")
    assert same_faces(first) and same_faces(second)
    assert first.fingerprint == second.fingerprint == faces_of().fingerprint and second.source == "fer2013"
    assert not second.images.flags.writeable and second.row.dtype == np.int64
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npy"]


def test_changed_source_is_read_again(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    load(path, cache=tmp_path / "cache")
    write_csv(path, images=255 - IMAGES)
    os.utime(path, ns=(1, 1))
    assert np.array_equal(load(path, cache=tmp_path / "cache").images, 255 - IMAGES)


def test_changed_image_tree_is_read_again(tmp_path):
    folder = write_tree(tmp_path / "tree", named_tree())
    assert len(load(folder, cache=tmp_path / "cache")) == N
    write_tree(folder, {"train/sad/Training_99.png": picture(IMAGES[0])})
    assert len(load(folder, cache=tmp_path / "cache")) == N + 1


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: b"", lambda raw: b"junk", lambda raw: raw[:60],
                                    lambda raw: raw[:-64 - N - N] + b"\xff" * (64 + N + N)])
def test_broken_cache_is_built_again(damage, tmp_path, caplog):
    path = write_csv(tmp_path / "fer2013.csv")
    load(path, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(damage(whole))
    assert same_faces(load(path, cache=tmp_path / "cache"))
    assert "built again" in caplog.text and kept.read_bytes() == whole


def test_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert same_faces(load(write_csv(tmp_path / "fer2013.csv"), cache=tmp_path / "cache"))
    assert "not cached" in caplog.text


# ---- image trees ----

def test_rows_of_a_tree_follow_split_and_number_not_folders(tmp_path):
    numbers = np.random.default_rng(2).integers(0, 10 ** 8, N)
    faces = load(write_tree(tmp_path, named_tree(numbers)))
    order = np.lexsort((numbers, SPLIT))
    assert np.array_equal(faces.images, IMAGES[order]) and np.array_equal(faces.row, np.arange(N))


@pytest.mark.parametrize("sizes, source", [((7, 7, 7), "fer2013"), ((7, 7, 8), "fer2013_images")])
def test_tree_is_fer2013_only_with_official_sizes_and_unbroken_numbers(sizes, source, tmp_path, monkeypatch):
    monkeypatch.setattr(fer2013, "OFFICIAL", np.array([[n] for n in sizes]))
    assert load(write_tree(tmp_path / "a", named_tree())).source == source
    assert load(write_tree(tmp_path / "b", named_tree([*range(N - 1), 99]))).source == "fer2013_images"


def test_alphabetical_folders_and_synonyms_map_by_name(tmp_path, caplog):
    folders = ("Anger", "disgusted", "Fearful", "happiness", "sadness", "Surprised", "3_neutral", "contempt")
    made = write_tree(tmp_path, tree(each=2, folders=folders))
    faces = load(made, splits={"train": "train", "test": "test", "val": None})
    assert (faces.counts().sum(0) == 4).all() and "4 images of contempt" in caplog.text
    sad = np.asarray(Image.open(made / "test/sadness/0.png"))
    (at,) = np.flatnonzero((faces.images == sad).all((1, 2)))
    assert EMOTIONS[faces.labels[at]] == "sad" and SPLITS[faces.split[at]] == "test"


def test_missing_val_is_a_seeded_stratified_tenth_of_train(tmp_path, caplog):
    made = write_tree(tmp_path, tree(each=20))
    faces = load(made, splits={"train": "train", "test": "test"})
    assert faces.counts().tolist() == [[18] * 7, [2] * 7, [20] * 7]
    assert faces.fingerprint == load(made, splits={"train": "train", "test": "test"}).fingerprint
    assert "14 of 140 training images are held out" in caplog.text and "seed 0" in caplog.text
    assert faces.source == tmp_path.name and len(np.unique(faces.row)) == len(faces)
    assert load(write_tree(tmp_path / "synthetic", tree(each=20)), splits={"train": "train", "test": "test"}).source == "synthetic_faces"  # still people


def test_stated_val_folder_is_used_and_the_rest_left_out(tmp_path, caplog):
    made = write_tree(tmp_path, tree(parts=("train", "val", "test", "extra"), each=2))
    faces = load(made, splits={"train": "train", "val": "val/", "test": "./test"})
    assert faces.counts().tolist() == [[2] * 7] * 3 and "14 images outside the stated folders" in caplog.text


def test_folders_named_after_splits_need_no_statement(tmp_path, caplog):
    made = write_tree(tmp_path / "mine", tree(parts=("Train", "valid", "test"), each=2))
    stated = load(made, splits={"train": "Train", "val": "valid", "test": "test"})
    assert load(made).fingerprint == stated.fingerprint and load(made).source == "mine"
    with pytest.raises(DataError, match="say which folder is which"):
        load(write_tree(tmp_path / "other", tree(parts=("train", "rest"), each=2)))


def test_people_of_ck_plus_stay_in_one_split(tmp_path):
    for person in range(20):
        write_tree(tmp_path, tree(parts=("CK",), each=2, prefix=f"S{person:03d}_001_"))
    faces = load(tmp_path, splits={"train": "CK"})
    assert faces.counts().sum(1).tolist() == [14 * 14, 2 * 14, 4 * 14]


def test_numbered_folders_load_with_a_stated_map(tmp_path):
    made = write_tree(tmp_path, tree(each=2, folders="1234567"))
    splits = {"train": "train", "test": "test"}
    order = [5, 2, 1, 3, 4, 0, 6]  # surprise, fear, disgust, happy, sad, angry, neutral
    by_name, by_map = (load(made, splits, emotions=emotions)
                       for emotions in ("rafdb", {str(i + 1): EMOTIONS[label] for i, label in enumerate(order)}))
    assert by_name.fingerprint == by_map.fingerprint
    assert by_name.labels[by_name.where("test")].tolist() == np.repeat(order, 2).tolist()


def test_images_of_other_sizes_and_modes_become_grey_48(tmp_path):
    halves = np.zeros((96, 96, 3), np.uint8)
    halves[:, 48:] = (255, 0, 0)
    sixteen = np.full((48, 48), 128 * 256, np.uint16)
    write_tree(tmp_path, named_tree())
    write_tree(tmp_path / "train/sad", {"Training_90.png": picture(halves), "Training_91.png": picture(sixteen)})
    faces = load(tmp_path)
    red, grey = faces.images[(faces.split == 0) & (faces.labels == 4)][-2:]
    assert red[:, :20].max() == 0 and np.ptp(red[:, 28:]) == 0 and red[0, 40] == 76 and (grey == 128).all()


# ---- FER+, MaskFer ----

def faces_of(n=N, source="fer2013"):
    return Faces(IMAGES[:n], LABELS[:n].astype(np.uint8), SPLIT[:n].astype(np.uint8), np.arange(n), source)


def write_votes(path, counts, split=SPLIT, columns=fer2013.FERPLUS):
    lines = ["Usage,Image name," + ",".join(columns)]
    lines += [f"{fer2013.USAGES[part]},a.png,{','.join(map(str, row))}" for part, row in zip(split, counts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def perfect_votes():
    counts = np.zeros((N, 10), int)
    counts[np.arange(N), [fer2013.FERPLUS_EMOTION.tolist().index(label) for label in LABELS]] = 10
    return counts


def test_ferplus_columns_map_by_name():
    assert [EMOTIONS[i] if i >= 0 else None for i in fer2013.FERPLUS_EMOTION] == [
        "neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", None, None, None]


def test_votes_agree_only_with_a_unique_plurality(tmp_path):
    counts = perfect_votes()
    counts[0] = [0, 0, 0, 0, 5, 5, 0, 0, 0, 0]   # tie with the label
    counts[1] = [0, 0, 0, 0, 0, 4, 0, 0, 0, 5]   # NF leads
    counts[2] = [1, 1, 1, 1, 1, 1, 2, 1, 1, 0]   # fear leads by one
    counts[3] = 0                                # no votes at all
    read = votes(write_votes(tmp_path / "v.csv", counts), faces_of())
    assert read.agree.tolist() == [False, False, True, False] + [True] * 17
    assert read.plurality[:4].tolist() == [-1, 9, 6, -1] and np.array_equal(read.counts, counts)


def test_votes_follow_rows_of_a_selection(tmp_path, monkeypatch):
    monkeypatch.setattr(fer2013, "OFFICIAL", np.array([N]))
    counts = perfect_votes()
    counts[20] = counts[0]
    chosen = faces_of().select(np.array([20, 3, 8]))
    assert votes(write_votes(tmp_path / "v.csv", counts), chosen).agree.tolist() == [False, True, True]


@pytest.mark.parametrize("make, faces, says", [
    (lambda p: p, faces_of(), "does not exist"),
    (lambda p: write_votes(p, perfect_votes()[:20]), faces_of(), "votes for 20 faces, not for the 21"),
    (lambda p: write_votes(p, perfect_votes()), faces_of(14), "votes for 21 faces, not for the 14"),
    (lambda p: write_votes(p, perfect_votes(), split=SPLIT[::-1]), faces_of(), "puts row 0 into 'PrivateTest'"),
    (lambda p: write_votes(p, perfect_votes(), columns=fer2013.FERPLUS[:9] + ("none",)), faces_of(), "no column NF"),
    (lambda p: write_votes(p, perfect_votes().tolist()[:20] + [["x"] * 10]), faces_of(), "not whole numbers"),
    (lambda p: write_votes(p, -perfect_votes()), faces_of(), "negative votes, first in row 0"),
    (lambda p: write_votes(p, perfect_votes()), faces_of(source="rafdb"), "come from 'rafdb'"),
])
def test_votes_that_do_not_fit_are_refused(make, faces, says, tmp_path):
    with pytest.raises(DataError, match=says):
        votes(make(tmp_path / "v.csv"), faces)


def test_maskfer_rows_mark_faces_by_row(tmp_path):
    (tmp_path / "rows.csv").write_text("row\n3\n20\n35886\n")
    assert np.flatnonzero(maskfer_rows(tmp_path / "rows.csv", faces_of())).tolist() == [3, 20]
    assert maskfer_rows(tmp_path / "rows.csv", faces_of().select(np.array([20, 4]))).tolist() == [True, False]


@pytest.mark.parametrize("text, says", [("a\n1\n", "no column row"), ("row\n1\nx\n", "line 3: 'x' is no row"),
                                        ("", "cannot be read"), ("row\n35887\n", "no row"),
                                        ("row\n-1\n", "no row"), ("row\n1.5\n", "no row")])
def test_bad_maskfer_rows_are_refused(text, says, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        maskfer_rows(tmp_path / "rows.csv", faces_of())


# ---- integrity ----

def value(tidy, check, split="all", emotion="all"):
    return tidy.set_index(["check", "split", "emotion"])["value"][check, split, emotion]


def test_report_finds_planted_copies_conflicts_and_blanks(tmp_path):
    images = IMAGES.copy()
    images[14] = images[0]             # test copy of train, same label
    images[15] = images[9]             # test copy of val, other label
    images[16] = images[9]             # and a second one, so also a copy within test; the label of row 9
    images[3], images[20] = 7, 7       # blanks, no leak
    faces = Faces(images, LABELS.astype(np.uint8), SPLIT.astype(np.uint8), np.arange(N), "made up")
    counts = perfect_votes()
    counts[14] = 1
    plus = votes(write_votes(tmp_path / "v.csv", counts), faces_of())
    tables = report(faces, plus)
    tidy = tables["integrity"]
    assert list(tidy.columns) == ["check", "split", "emotion", "value", "expected"] and tidy["expected"].isna().all()
    assert value(tidy, "copies_in_train", "test", "angry") == value(tidy, "copies_in_train") == 1
    assert value(tidy, "copies_in_val", "test") == 2
    assert value(tidy, "copies_within", "test") == value(tidy, "copies_within") == 2
    assert value(tidy, "clean", "test") == faces.clean("test").sum() == 4 and value(tidy, "clean", "val") == 7
    assert value(tidy, "conflicting") == 3 and value(tidy, "conflicting_groups") == 1 and value(tidy, "blank") == 2
    assert value(tidy, "ferplus_agree", "test") == pytest.approx(6 / 7)
    assert value(tidy, "ferplus_tie", "test", "angry") == 1
    assert tables["counts"].loc["train", "angry"] == 1 and tables["counts"].loc["all", "all"] == N
    assert tables["copies"].loc[("clean", "test"), "all"] == 4 and tables["agreement"].loc["val", "all"] == 1
    assert tables["source"].loc[0, "fingerprint"] == faces.fingerprint and "agreement" not in report(faces)


def test_expected_counts_are_official():
    tidy = integrity(faces_of())
    expected = tidy.set_index(["check", "split", "emotion"])["expected"]
    assert expected["faces", "test", "disgust"] == 55 and expected["faces", "all", "all"] == 35_887
    assert expected["faces", "train", "all"] == 28_709 and expected["clean", "test", "all"] == 3_275


@pytest.mark.skipif("FER2013" not in os.environ, reason="set FER2013 to the path of fer2013.csv")
def test_real_fer2013_gives_the_official_and_the_measured_numbers():
    faces = load(os.environ["FER2013"])
    if faces.source != "fer2013":
        pytest.skip("FER2013 is not the csv")
    assert np.array_equal(faces.counts(), fer2013.OFFICIAL) and len(faces) == 35_887
    plus = Path(os.environ["FERPLUS"]) if "FERPLUS" in os.environ else None
    tidy = integrity(faces, votes(plus, faces) if plus else None)
    known = tidy[tidy["expected"].notna()]
    assert (known["value"] - known["expected"]).abs().max() < 0.005
    assert value(tidy, "clean", "test") == faces.clean("test").sum() == 3_275
