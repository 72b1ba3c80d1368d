"""Splits by sequence."""

from pathlib import Path

import numpy as np
import pytest

from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import write_image, write_label
from edgeuda.data.splits import sequence_of, split_pairs, write_splits
from edgeuda.errors import DataError
from edgeuda.labels import SPACES

SPACE = SPACES["carla-3"]


def dataset(root, sequences, length):
    image, label = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
    for sequence in range(sequences):
        for number in range(length):
            # Not padded: the order of names is not that of numbers.
            write_image(root / f"images/s{sequence}_{number}.png", image)
            write_label(root / f"labels/s{sequence}_{number}.png", label)
    return labelled_folder(root, SPACE)


def numbers(pairs):
    return sorted(sequence_of(pair.image)[1] for pair in pairs)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("aachen/aachen_000000_000019_leftImg8bit.png", ("aachen/aachen_000000_", 19)),
        ("0006R0_f03270.png", ("./0006R0_f", 3270)),
        ("a/00012.png", ("a/", 12)),
        ("a/first.png", ("a/first", 0)),
    ],
)
def test_sequences_by_folder_and_name(path, expected):
    assert sequence_of(Path(path)) == expected


def test_many_sequences_stay_whole(tmp_path):
    folder = dataset(tmp_path, 12, 5)
    found = split_pairs(folder, (0.6, 0.2, 0.2), seed=3)
    assert (found.sequences, found.left_out) == (12, 0)
    owners = [{sequence_of(pair.image)[0] for pair in part} for part in found.parts]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 12
    assert [len(part) for part in found.parts] in ([35, 15, 10], [35, 10, 15], [40, 10, 10])
    assert split_pairs(folder, (0.6, 0.2, 0.2), seed=3) == found
    assert split_pairs(folder, (0.6, 0.2, 0.2), seed=4) != found


def test_one_sequence_is_cut_with_gaps(tmp_path):
    folder = dataset(tmp_path, 1, 110)
    found = split_pairs(folder, (8, 1, 1), gap=5)
    train, val, test = map(numbers, found.parts)
    assert train == list(range(80))
    assert val == list(range(85, 95))
    assert test == list(range(100, 110))
    assert found.left_out == 10


def test_lists_are_read_back(tmp_path):
    folder = dataset(tmp_path / "data, all", 1, 30)
    files = write_splits(tmp_path / "out", split_pairs(folder, (2, 1), gap=0))
    assert [file.name for file in files] == ["train.csv", "val.csv"]
    again = [labelled_folder(file, SPACE) for file in files]
    assert [len(part) for part in again] == [20, 10]
    assert again[0].read(0)[1].shape == (2, 2)


def test_too_few_images(tmp_path):
    with pytest.raises(DataError, match="4 images in 1 sequences leave none for train"):
        split_pairs(dataset(tmp_path, 1, 4), (8, 1, 1), gap=2)
