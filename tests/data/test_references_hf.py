"""``hf:`` data: what ``datasets.save_to_disk`` writes and what the hub keeps, without the ``datasets`` library."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from limbeck.data.references import load_data
from limbeck.errors import UserError

TEXTS = [f"text number {number}" for number in range(30)]
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
}


def save(folder, table, features=None, shards=2):
    """The layout of ``Dataset.save_to_disk``: Arrow streams beside two JSON files."""
    folder.mkdir(parents=True)
    rows = -(-table.num_rows // shards)
    files = []
    for place in range(shards):
        name = f"data-{place:05d}-of-{shards:05d}.arrow"
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(place * rows, rows))
        files.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


def table(start=0, stop=30):
    return pa.table({"text": TEXTS[start:stop], "label": [number % 2 for number in range(start, stop)]})


def test_saved_data_set(tmp_path):
    data = load_data(f"hf:{save(tmp_path / 'set', table(), FEATURES)}")
    assert (data.labels, data.task) == (["neg", "pos"], "classification")
    parts = (data.splits.train, data.splits.validation, data.splits.test)
    assert sorted(text for part in parts for text in part.input) == sorted(TEXTS)
    for text, target in zip(data.splits.train.input, data.splits.train.labels.tolist()):
        assert target == TEXTS.index(text) % 2


def test_saved_splits(tmp_path):
    save(tmp_path / "train", table(0, 20), FEATURES)
    save(tmp_path / "validation", table(20, 25), FEATURES)
    save(tmp_path / "test", table(25, 30), FEATURES)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    data = load_data(f"hf:{tmp_path}")
    assert [len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)] == [20, 5, 5]
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["unsupervised"]}))
    with pytest.raises(UserError, match=r"data: .*with the splits unsupervised; allowed: a split named train"):
        load_data(f"hf:{tmp_path}")


def test_labels_outside_the_declared_classes(tmp_path):
    odd = pa.table({"text": TEXTS, "label": [2, -1, *[0, 1] * 14]})
    with pytest.raises(UserError, match="data column label: given -1; allowed: class numbers 0 to 1 for neg, pos"):
        load_data(f"hf:{save(tmp_path / 'set', odd, FEATURES)}")


def test_snapshot_of_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(table(0, 20), tmp_path / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table(20, 30), tmp_path / "data" / "test-00000-of-00001.parquet")
    data = load_data(f"hf:{tmp_path}")
    assert len(data.splits.test) == 10
    assert data.notes[0] == "read from its parquet files"


def test_images_travel_in_the_table(tmp_path):
    generator = np.random.default_rng(0)
    cells = []
    for _ in range(12):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    images = pa.table({"image": cells, "label": [0, 1] * 6})
    data = load_data(f"hf:{save(tmp_path / 'set', images, FEATURES)}")
    assert (data.modality, data.labels) == ("image", ["neg", "pos"])
    assert isinstance(data.splits.train.input[0], bytes)
    cells[3] = {"bytes": b"broken", "path": None}
    broken = pa.table({"image": cells, "label": [0, 1] * 6})
    with pytest.raises(UserError, match=r"1 of 12 images that cannot be decoded.* train row 3"):
        load_data(f"hf:{save(tmp_path / 'broken', broken)}")
    cells[3] = {"bytes": None, "path": "somewhere.png"}
    with pytest.raises(UserError, match="the bytes of every image, 1 train rows have none"):
        load_data(f"hf:{save(tmp_path / 'paths', pa.table({'image': cells, 'label': [0, 1] * 6}))}")


def test_wrong_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data: .*datasets\.save_to_disk.*it holds nothing"):
        load_data(f"hf:{tmp_path / 'empty'}")
    folder = save(tmp_path / "set", table())
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow is missing"):
        load_data(f"hf:{folder}")
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match="readable JSON"):
        load_data(f"hf:{folder}")


def test_name_that_is_nowhere(tmp_path):
    with pytest.raises(UserError, match="data: given hf:.*no data set of this name in the local hub cache"):
        load_data(f"hf:{tmp_path / 'nowhere'}")
