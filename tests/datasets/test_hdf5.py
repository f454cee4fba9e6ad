"""Files that are not HDF5, or are made to mislead: each is refused in one sentence, at once and without using much memory."""

import fcntl
import gzip
import io
import time
import tracemalloc

import h5py
import numpy as np
import pytest

from mbaug import __main__ as commands
from mbaug.datasets import hdf5
from mbaug.datasets.cards import DatasetDamaged

WHOLE = {"observations": np.zeros((5, 11)), "actions": np.zeros((5, 3)), "rewards": np.arange(5.0)}
WHOLE |= {key: np.zeros(5, bool) for key in ("terminals", "timeouts")}


def refused(path):
    """Returns the error sentence for a file; asserts that it takes less than a second and 10 MB."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DatasetDamaged) as error:
        hdf5.read_hdf5(path)
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    return str(error.value)


# --- files that are not HDF5 ----------------------------------------------------------------------------------------------


def saved(save, *given, **named):
    file = io.BytesIO()
    save(file, *given, **named)
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 269096\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (LFS, "is a Git LFS pointer instead of the data: run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s1--0.hdf5\n", "is a git-annex pointer instead of the data: run `git annex get`"),
        (gzip.compress(b"x"), "is compressed with gzip: unpack it with `gunzip`"),
        (saved(np.savez, **WHOLE), "is a ZIP archive, such as .npz: unpack it"),
        (saved(np.save, WHOLE["actions"]), "is a NumPy array: write the columns into an HDF5 file"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>404</title>", "is a web page instead of the data: download the file itself"),
        (b"", "is not an HDF5 file (an incomplete download?): download or copy it again"),
        (bytes(4096), "is not an HDF5 file"),
    ],
    ids=["Git LFS", "git-annex", "gz", "npz", "npy", "web page", "empty", "zeros"],
)
def test_the_error_says_what_the_file_is_instead_of_hdf5(tmp_path, content, sentence):
    path = tmp_path / "a.hdf5"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path} {sentence}")


# --- HDF5 files with bad columns ------------------------------------------------------------------------------------------


def elsewhere(file, key):
    """Writes a column into a second file and returns its path."""
    path = file.filename.replace("a.hdf5", "b.hdf5")
    with h5py.File(path, "w") as other:
        other[key] = WHOLE[key]
    return path


def linked(file, key):
    file[key] = h5py.ExternalLink(elsewhere(file, key), key)


def external(file, key):
    raw = file.filename.replace("a.hdf5", "raw")
    WHOLE[key].tofile(raw)
    file.create_dataset(key, WHOLE[key].shape, WHOLE[key].dtype, external=[(raw, 0, h5py.h5f.UNLIMITED)])


def virtual(file, key):
    layout = h5py.VirtualLayout(WHOLE[key].shape, WHOLE[key].dtype)
    layout[:] = h5py.VirtualSource(elsewhere(file, key), key, WHOLE[key].shape)
    file.create_virtual_dataset(key, layout)


def half_written(file, key):
    file.create_dataset(key, (5,), "f4", chunks=(1,))[:3] = 1


def filtered(file, key):
    """Makes a column that claims to be compressed by a filter that does not exist."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((5,))
    properties.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((5,))
    h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F64LE, space, properties)
    file[key].id.write_direct_chunk((0,), WHOLE[key].tobytes())


BAD = {
    "a link to another file": (linked, "is a link to another file"),
    "external storage": (external, "is stored in another file (external storage)"),
    "a virtual column": (virtual, "is a view of other files (a virtual dataset)"),
    "a null dataspace": (lambda file, key: file.create_dataset(key, data=h5py.Empty("f8")), "is empty: it has a type, but no"),
    "a group": (lambda file, key: file.create_group(key), "is a group, but it must be a column of numbers"),
    "a type": (lambda file, key: file.__setitem__(key, np.dtype("f8")), "is a type, but it must be a column of numbers"),
    "a dangling link": (lambda file, key: file.__setitem__(key, h5py.SoftLink("/nowhere")), "is damaged"),
    "half written": (half_written, "parts of rewards were never written"),
    "an unknown filter": (filtered, "is compressed with a plug-in filter, but only gzip"),
    "a scalar": (lambda file, key: file.create_dataset(key, data=1.0), "it must have 1 axes"),
    "10^12 rows": (lambda file, key: file.create_dataset(key, (10**12,), "f8", chunks=(10**6,)), "has 1000000000000 rows, but"),
    "texts": (lambda file, key: file.create_dataset(key, data=["a"] * 5), "has the type object, but only numbers are allowed"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_column_that_is_not_fully_stored_in_the_file_is_refused(tmp_path, case):
    make, sentence = BAD[case]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name in WHOLE.keys() - {"rewards"}:
            file[name] = WHOLE[name]
        make(file, "rewards")
    message = refused(tmp_path / "a.hdf5")
    assert message.startswith(f"{tmp_path / 'a.hdf5'}")
    assert sentence in message


def test_an_optional_column_that_is_damaged_does_not_count_as_missing(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name in WHOLE:
            file[name] = WHOLE[name]
        file["next_observations"] = h5py.SoftLink("/nowhere")
    assert "a.hdf5 is damaged, and parts of it cannot be read" in refused(tmp_path / "a.hdf5")


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path):
    """The file declares 10^8 rows, although it stores none of them."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, column in WHOLE.items():
            file.create_dataset(key, (10**8, *column.shape[1:]), column.dtype, chunks=(10**4, *column.shape[1:]))
    assert "declares 12,200,000,000 bytes of columns and their chunks, but at most 2,147,483,648 are allowed" in refused(
        tmp_path / "a.hdf5"
    )


def test_a_chunk_that_would_fill_the_memory_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, column in WHOLE.items():
            large = {"chunks": (2**29 - 1,), "maxshape": (None,)} if key == "rewards" else {}
            file.create_dataset(key, column.shape, column.dtype, **large)
            if key != "rewards":
                file[key][:] = column
    assert "declares 4,294,967,858 bytes of columns and their chunks" in refused(tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        ("data", "the columns are in the group data, but they must be at the top level: move them there"),
        ("da\x1bta", r"the columns are in the group 'da\x1bta', but"),
    ],
)
def test_the_error_says_that_the_columns_lie_inside_a_group(tmp_path, inside, sentence):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, column in WHOLE.items():
            file[f"{inside}/{key}"] = column
    assert sentence in refused(tmp_path / "a.hdf5")


def test_the_error_for_a_minari_file_says_how_to_import_it(tmp_path):
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        for key in ("observations", "actions", "rewards", "terminations", "truncations"):
            file[f"episode_0/{key}"] = np.zeros(3)
    assert refused(tmp_path / "main_data.hdf5").endswith("belongs to a Minari dataset: import the dataset as minari:ID")


def test_control_characters_in_names_are_escaped(tmp_path):
    """Neither the name of a column nor that of a file can send control codes to the terminal."""
    path = tmp_path / "a\x1b[2J.hdf5"
    with h5py.File(path, "w") as file:
        file["re\x07wards"] = np.zeros(3)
    message = refused(path)
    assert r"columns in this file: 're\x07wards'; groups: none" in message
    with pytest.raises(SystemExit) as error:
        commands.main(["data", str(path), "--as", "hopper-x"])
    assert str(error.value).isprintable()


def test_reading_a_file_takes_no_lock(tmp_path):
    """Some file systems have no locks. An exclusive lock that somebody else holds shows that we take none."""
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for key, column in WHOLE.items():
            file[key] = column
    with open(path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert hdf5.read_hdf5(path)["rewards"].tolist() == [0, 1, 2, 3, 4]
