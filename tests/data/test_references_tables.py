"""``csv:``, ``parquet:`` and ``jsonl:``: columns, targets, splits, and what is wrong with them."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from limbeck.data.partition import text_ids
from limbeck.data.references import load_data
from limbeck.errors import UserError

TEXTS = [f"text number {number}" for number in range(60)]
MOODS = [("good", "bad", "so so")[number % 3] for number in range(60)]


def write(folder, columns, kind="parquet", name="data"):
    path = folder / f"{name}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
    else:
        path.write_text("".join(json.dumps(dict(zip(columns, row))) + "\n" for row in zip(*columns.values())))
    return f"{kind}:{path}"


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_text_classification_from_every_format(tmp_path, kind):
    data = load_data(write(tmp_path, {"text": TEXTS, "label": MOODS}, kind))
    assert (data.modality, data.task, data.labels, data.num_classes) == (
        "text", "classification", ["bad", "good", "so so"], 3,
    )  # fmt: skip
    assert "holds names" in data.task_reason
    parts = (data.splits.train, data.splits.validation, data.splits.test)
    assert [len(part) for part in parts] == [48, 6, 6]
    for part in parts:
        for text, target in zip(part.input, part.labels.tolist()):
            assert data.labels[target] == MOODS[TEXTS.index(text)]
        # Every split holds the classes in proportion.
        assert part.labels.bincount().tolist() == [len(part) // 3] * 3
    assert sorted(text for part in parts for text in part.input) == sorted(TEXTS)
    assert "text, classification, 48 train, 6 validation, 6 test, 3 classes" in data.describe()


def test_content_decides_ids_and_fingerprint_and_not_the_file(tmp_path):
    one = load_data(write(tmp_path / "a", {"text": TEXTS, "label": MOODS}, "csv"))
    two = load_data(write(tmp_path / "b", {"body": TEXTS, "mood": MOODS}, "jsonl"), columns={"label": "mood"})
    other = load_data(write(tmp_path / "c", {"text": [*TEXTS[:-1], "new"], "label": MOODS}))
    assert torch.equal(one.splits.test.id, two.splits.test.id)
    assert torch.equal(one.splits.test.id, text_ids(one.splits.test.input))
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_seed_and_shares_decide_the_split(tmp_path):
    reference = write(tmp_path, {"text": TEXTS, "label": MOODS})
    first, again, other = (load_data(reference, seed=seed) for seed in (0, 0, 1))
    assert first.splits.test.input == again.splits.test.input != other.splits.test.input
    large = load_data(reference, validation_share=0.2, test_share=0.3)
    assert [len(part) for part in (large.splits.train, large.splits.validation, large.splits.test)] == [30, 12, 18]
    for shares in ((0.0, 0.1), (0.6, 0.5), (1.5, 0.1)):
        with pytest.raises(UserError, match="share of the data"):
            load_data(reference, validation_share=shares[0], test_share=shares[1])


def test_duplicates_stay_in_one_split(tmp_path):
    data = load_data(write(tmp_path, {"text": TEXTS * 2, "label": MOODS * 2}))
    parts = (data.splits.train, data.splits.validation, data.splits.test)
    ids = [set(part.id.tolist()) for part in parts]
    assert sum(map(len, ids)) == len(set.union(*ids))
    assert sum(map(len, parts)) == 120
    assert any("60 samples are duplicates" in note for note in data.notes)


def test_given_splits_are_kept_and_the_missing_one_is_cut(tmp_path):
    write(tmp_path / "set", {"text": TEXTS[:40], "label": MOODS[:40]}, name="train-00000-of-00001")
    write(tmp_path / "set", {"text": TEXTS[30:], "label": MOODS[30:]}, name="test")
    data = load_data(f"parquet:{tmp_path / 'set'}")
    assert data.splits.test.input == TEXTS[30:]
    assert len(data.splits.train) + len(data.splits.validation) == 40
    assert any("cut validation from the training samples" in note for note in data.notes)
    again = len({*data.splits.test.input} & {*data.splits.train.input})
    assert 0 < again <= 10
    assert any(f"{again} test samples (" in note and "also stand in training" in note for note in data.notes)


def test_files_without_split_names_are_one_table(tmp_path):
    write(tmp_path / "set", {"text": TEXTS[:30], "label": MOODS[:30]}, "csv", "part1")
    write(tmp_path / "set", {"text": TEXTS[30:], "label": MOODS[30:]}, "csv", "part2")
    data = load_data(f"csv:{tmp_path / 'set'}")
    assert len(data.splits.train) + len(data.splits.validation) + len(data.splits.test) == 60


@pytest.mark.parametrize(
    ("values", "labels", "first"),
    [
        ([number % 3 for number in range(60)], None, 0),
        ([1 + number % 5 for number in range(60)], ["1", "2", "3", "4", "5"], 0),
        ([float(number % 2) for number in range(60)], None, 0),
        ([number % 2 == 0 for number in range(60)], ["False", "True"], 1),
    ],
)
def test_numbers_as_classes(tmp_path, values, labels, first):
    data = load_data(write(tmp_path, {"text": TEXTS, "label": values}))
    assert (data.task, data.labels) == ("classification", labels)
    assert data.num_classes == len(set(values))
    place = data.splits.train.input.index(next(text for text in data.splits.train.input))
    value = values[TEXTS.index(data.splits.train.input[place])]
    expected = labels.index(str(value)) if labels else int(value)
    assert data.splits.train.labels[place] == expected


def test_given_class_names_are_all_there_are(tmp_path):
    numbers = write(tmp_path / "n", {"text": TEXTS, "label": [number % 3 for number in range(60)]})
    data = load_data(numbers, labels=["a", "b", "c", "d"])
    assert (data.labels, data.num_classes) == (["a", "b", "c", "d"], 4)
    assert any("no sample of the classes d" in note for note in data.notes)
    with pytest.raises(UserError, match=r"data column label: given 2; allowed: class numbers 0 to 1 for a, b"):
        load_data(numbers, labels=["a", "b"])
    names = write(tmp_path / "t", {"text": TEXTS, "label": MOODS})
    assert load_data(names, labels=["so so", "good", "bad"]).labels == ["so so", "good", "bad"]
    with pytest.raises(UserError, match=r"data column label: given bad; allowed: good, so so"):
        load_data(names, labels=["good", "so so"])
    with pytest.raises(UserError, match="labels: "):
        load_data(names, labels=["good", "good"])


def test_declared_class_names_of_the_datasets_library(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    table = pa.table({"text": TEXTS, "label": [number % 2 for number in range(60)]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    data = load_data(f"parquet:{tmp_path / 'a.parquet'}")
    assert (data.labels, data.task) == (["neg", "pos"], "classification")
    assert "declares its class names" in data.task_reason


def test_regression(tmp_path):
    reference = write(tmp_path, {"text": TEXTS, "score": [number / 7 for number in range(60)]})
    data = load_data(reference)
    assert (data.task, data.labels, data.num_classes) == ("regression", None, None)
    assert data.splits.train.labels.dtype == torch.float32
    place = TEXTS.index(data.splits.test.input[0])
    assert data.splits.test.labels[0] == pytest.approx(place / 7)
    many = load_data(write(tmp_path, {"text": [f"t {n}" for n in range(150)], "score": list(range(150))}, name="many"))
    assert many.task == "regression"
    whole = write(tmp_path, {"text": TEXTS, "score": MOODS}, name="words")
    with pytest.raises(UserError, match="data column score: .*numbers, for regression"):
        load_data(whole, task="regression")


def test_one_column_of_texts_is_for_embedding(tmp_path):
    data = load_data(write(tmp_path, {"text": TEXTS}))
    assert (data.task, data.pairs, data.splits.train.target) == ("embedding", None, None)
    assert data.task_reason == "there is no column of targets"
    labelled = load_data(write(tmp_path, {"text": TEXTS, "label": MOODS}, name="l"), task="embedding")
    assert labelled.splits.train.target is None
    assert labelled.task_reason == "asked for"
    assert load_data(write(tmp_path, {"text": TEXTS, "label": MOODS}, name="m"), task="causal-lm").task == "causal-lm"


def test_pairs_are_split_as_pairs(tmp_path):
    queries, documents = [f"query {n}" for n in range(40)], [f"document {n}" for n in range(40)]
    data = load_data(write(tmp_path, {"document": documents, "query": queries}, "jsonl"))
    assert data.task == "embedding"
    assert [len(data.pairs[name][0]) for name in ("train", "validation", "test")] == [32, 4, 4]
    for name in ("train", "validation", "test"):
        asked, found = data.pairs[name]
        assert [text.split()[1] for text in asked] == [text.split()[1] for text in found]
        assert set(getattr(data.splits, name).input) == {*asked, *found}


def test_pairs_with_a_label_are_one_sample(tmp_path):
    columns = {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": MOODS}
    data = load_data(write(tmp_path, columns))
    assert (data.task, data.pairs) == ("classification", None)
    assert all(isinstance(sample, tuple) for sample in data.splits.train.input)
    assert any("premise and hypothesis are read as pairs" in note for note in data.notes)
    chosen = load_data(
        write(tmp_path, {"a": TEXTS, "b": TEXTS, "label": MOODS}, name="o"), columns={"text": "a", "text_pair": "b"}
    )
    assert chosen.splits.train.input[0][0] == chosen.splits.train.input[0][1]


def test_columns_are_guessed_with_a_note_and_overruled(tmp_path):
    columns = {"id": [f"{n}" for n in range(60)], "long": [f"{text} and much more" for text in TEXTS], "stars": MOODS}
    data = load_data(write(tmp_path, columns, "jsonl"))
    assert data.splits.train.input[0].endswith("much more")
    assert any(
        "column long holds the texts (the longest texts of several columns); not read: id" in n for n in data.notes
    )
    assert any("column stars holds the targets" in note for note in data.notes)
    other = load_data(write(tmp_path, columns), columns={"text": "id", "label": "stars"})
    assert other.splits.train.input[0].isdigit()
    with pytest.raises(UserError, match=r"columns\.text: given longer; allowed: id, long, stars"):
        load_data(write(tmp_path, columns), columns={"text": "longer"})
    with pytest.raises(UserError, match=r"columns: given body; allowed: text, text_pair, label, image"):
        load_data(write(tmp_path, columns), columns={"body": "long"})


def test_delimiters_and_quoted_lines(tmp_path):
    (tmp_path / "a.csv").write_text("text;label\n" + "".join(f'"line {n}\nnext; line";{MOODS[n]}\n' for n in range(60)))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"line, {n}\t{MOODS[n]}\n" for n in range(60)))
    assert "\nnext; line" in load_data(f"csv:{tmp_path / 'a.csv'}").splits.train.input[0]
    assert "line, " in load_data(f"csv:{tmp_path / 'a.tsv'}").splits.train.input[0]


def test_empty_texts_are_left_out_with_a_note(tmp_path):
    data = load_data(write(tmp_path, {"text": ["", "  ", None, *TEXTS[3:]], "label": MOODS}))
    assert any("3 train rows without text left out" in note for note in data.notes)
    assert "" not in data.splits.train.input


def test_rare_classes_stay_in_training(tmp_path):
    data = load_data(write(tmp_path, {"text": TEXTS, "label": [*MOODS[:-1], "once"]}))
    number = data.labels.index("once")
    assert number in data.splits.train.labels.tolist()
    assert number not in [*data.splits.validation.labels.tolist(), *data.splits.test.labels.tolist()]
    assert any("1 classes have too few" in note for note in data.notes)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": ["one"], "label": ["a"]}, {}, "one class only"),
        ({"text": ["one"]}, {}, r"data: given 1 samples, 1 of them distinct; allowed: at least 3 distinct"),
        ({"text": ["one"] * 9}, {}, "9 samples, 1 of them distinct"),
        ({"text": ["one", "two", "three"], "label": ["a", "b", "c"]}, {}, "at least one class of 3 distinct samples"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, {}, "train without rows"),
        ({"text": ["", None]}, {}, "at least one text"),
        ({"text": TEXTS, "label": ["a"] * 60}, {}, "data column label: given one class only"),
        ({"text": TEXTS, "label": [None, *MOODS[1:]]}, {}, r"1 missing targets in train, first rows \[0\]"),
        ({"text": TEXTS, "label": [-1, *range(59)]}, {"task": "classification"}, "label: given -1; .*leave them out"),
        ({"text": TEXTS, "label": [0.5] * 60}, {"task": "classification"}, "given 0.5; .*task='regression'"),
        (
            {"text": TEXTS, "score": [float("nan")] + [0.5] * 59},
            {},
            r"1 NaN or infinite targets in train, first rows \[0\]",
        ),
        ({"text": TEXTS, "score": [float("inf")] + [0.5] * 59}, {"task": "regression"}, "NaN or infinite"),
        ({"text": TEXTS}, {"task": "classification"}, "data columns: given text; allowed: targets for classification"),
        ({"number": list(range(60))}, {}, r"data columns: given number \(int64\); allowed: a column of texts"),
    ],
)
def test_bad_tables(tmp_path, columns, options, message):
    with pytest.raises(UserError, match=message):
        load_data(write(tmp_path, columns), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", 'text,label\n"never closed,a\n', "a readable csv file"),
        ("a.csv", b"text,label\n\xff\xfe\xff,a\n", "column text is not UTF-8"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", '[{"text": "a"}]', "write one object per line"),
        ("a.jsonl", '{"text": "a"}\n{"text":', "a readable jsonl file"),
        ("a.parquet", "no parquet", "a readable parquet file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^data.*(?:{message})"):
        load_data(f"{path.suffix[1:]}:{path}")


def test_missing_files_name_near_ones(tmp_path):
    write(tmp_path, {"text": TEXTS}, "csv", "training")
    with pytest.raises(UserError, match=r"data: given csv:.*trainin\.csv; allowed: .*training\.csv; no such file"):
        load_data(f"csv:{tmp_path / 'trainin.csv'}")
    with pytest.raises(UserError, match="there is no folder"):
        load_data(f"csv:{tmp_path / 'nowhere' / 'a.csv'}")
    with pytest.raises(UserError, match=r"a folder with \.parquet files; it holds training\.csv"):
        load_data(f"parquet:{tmp_path}")


def test_schemes(tmp_path):
    with pytest.raises(UserError, match=r"^data: .*folder:DIR.*parquet:.*csv:.*jsonl:.*hf:DIR.*testbed:.*py:"):
        load_data("xlsx:a")
    write(tmp_path, {"text": TEXTS}, "csv")
    with pytest.raises(UserError, match="for this file write csv:"):
        load_data(str(tmp_path / "data.csv"))
    with pytest.raises(UserError, match="for the folder .* write folder:"):
        load_data(str(tmp_path))
    with pytest.raises(UserError, match="task: given segmentation"):
        load_data("csv:a", task="segmentation")
    with pytest.raises(UserError, match="validation: given 1"):
        load_data(
            "testbed:digits",
            key="validation",
            testbeds=lambda name: (_ for _ in ()).throw(UserError("validation", "1")),
        )


def test_testbeds_are_opened_by_whoever_knows_them(tmp_path):
    found = load_data(write(tmp_path, {"text": TEXTS}))
    asked = []
    assert load_data("testbed:digits:plain", testbeds=lambda name: asked.append(name) or found) is found
    assert asked == ["digits:plain"]
    with pytest.raises(UserError, match="a call that knows the testbeds"):
        load_data("testbed:digits")
