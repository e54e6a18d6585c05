"""Tables from disk: what is wrong with a text is named by its path in it, before anything is allocated."""

from __future__ import annotations

import json

import numpy as np
import pytest

import deis_analysis as da
from deis_analysis.interop import PortableTable, portable
from deis_analysis.interop.published import read_levels, read_ratios
from deis_analysis.storage import read_text
from deis_analysis.tableau.document import MOST, Document

VP = da.VPLinear()
TABLE = da.build("sde_dpmpp_2m", VP, da.grid(VP, 3))
GOOD = json.loads(TABLE.to_json())
PORTABLE = json.loads(portable(TABLE, VP).to_json())
NESTED = "[" * 100_000 + "]" * 100_000


def changed(data, path, value):
    """``data`` with another value at a path of names and indices."""
    data = json.loads(json.dumps(data))
    *way, last = path
    place = data
    for key in way:
        place = place[key]
    place[last] = value
    return data


@pytest.mark.parametrize(("path", "value", "match"), [
    (("states", 0, 0), -1, r"states\[0\]\[0\]=-1; allowed: an integer between 0 and 3"),
    (("states", 0, 0), 1.0, r"states\[0\]\[0\]=1.0; allowed: an integer"),
    (("states", 0, 0), 1.5, r"states\[0\]\[0\]=1.5; allowed: an integer"),
    (("states", 0, 0), True, r"states\[0\]\[0\]=True; allowed: an integer"),
    (("outputs", 1, 0), "2", r"outputs\[1\]\[0\]='2'; allowed: an integer"),
    (("outputs", 1, 0), 4, r"outputs\[1\]\[0\]=4; allowed: an integer between 0 and 3"),
    (("outputs", 1, 1), 10**30, r"outputs\[1\]\[1\]=10+; allowed: an integer"),
    (("outputs", 1), [1, 1, 0.5], r"outputs\[1\]=\[1, 1, 0.5\]; allowed: a row and a column below it"),
    (("outputs", 1), GOOD["outputs"][0], r"outputs\[1\]=.*; allowed: a row and a column that no entry before it has"),
    (("outputs", 1), [1, 0], r"outputs\[1\]=\[1, 0\]; allowed: a list of 3 entries"),
    (("outputs", 1, 2), "0.5", r"outputs\[1\]\[2\]='0.5'; allowed: a finite number"),
    (("outputs", 1, 2), 10**400, r"outputs\[1\]\[2\]=10+\.\.\.0+; allowed: a finite number"),
    (("noise", 0, 1), 3, r"noise\[0\]\[1\]=3; allowed: an integer between 0 and 2"),
    (("times", 1), None, r"times\[1\]=None; allowed: a finite number"),
    (("times", 1), False, r"times\[1\]=False; allowed: a finite number"),
    (("times",), 3, "times=3; allowed: a list"),
    (("times",), [], r"times=\[\]; allowed: at least 2 numbers"),
    (("intervals", 0), [1.0], r"intervals\[0\]=\[1.0\]; allowed: a list of 2 entries"),
    (("intervals", 0, 1), [], r"intervals\[0\]\[1\]=\[\]; allowed: a finite number"),
    (("labels",), [1, 2, 3, 4], r"labels\[0\]=1; allowed: a string"),
    (("labels",), "abcd", "labels='abcd'; allowed: a list"),
    (("grid_nodes", 1), 1.0, r"grid_nodes\[1\]=1.0; allowed: an integer"),
    (("grid_nodes", 1), -1, r"grid_nodes\[1\]=-1; allowed: an integer"),
    (("mean",), "abc", "mean='abc'; allowed: a finite number"),
    (("mean",), [[1.0], [1.0, 2.0]], "mean=.*; allowed: lists of one length"),
    (("mean",), {}, "mean={}; allowed: a finite number"),
    (("name",), 3, "name=3; allowed: a string"),
    (("prediction",), [], r"prediction=\[\]; allowed: a string"),
    (("prediction",), "noise", "prediction='noise' is unknown"),
    (("format",), "deis_analysis.Tableau/2", "format 'deis_analysis.Tableau/2'; allowed: 'deis_analysis.Tableau/1'"),
])  # fmt: skip
def test_a_wrong_entry_is_named_by_its_path(path, value, match):
    with pytest.raises(ValueError, match=match):
        da.Tableau.from_json(json.dumps(changed(GOOD, path, value)))
    inside = changed(PORTABLE, ("tableau", *path), value)
    with pytest.raises(ValueError, match=match) as error:
        PortableTable.from_json(json.dumps(inside))
    if str(error.value).startswith("text"):
        assert "tableau." in str(error.value)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "mean"])
def test_a_missing_field_is_named(name):
    with pytest.raises(ValueError, match=rf"it has no {name}"):
        da.Tableau.from_json(json.dumps({key: value for key, value in GOOD.items() if key != name}))


@pytest.mark.parametrize("text", [
    NESTED, '{"format": ' + NESTED + "}", json.dumps(GOOD).replace("0.", "NaN", 1), json.dumps(GOOD)[:-9], "", "3",
    "null", '{"format": ' + "9" * 5000 + "}", None, 3, b"\xff",
    json.dumps(GOOD | {"mean": 0}).replace('"mean": 0', '"mean": ' + "[" * 60 + "]" * 60),
])  # fmt: skip
def test_no_document(text):
    for read in (da.Tableau.from_json, PortableTable.from_json):
        with pytest.raises(ValueError, match="text"):
            read(text)


def test_old_files_are_read():
    """Without what came later, and with what has gone."""
    table = da.build("tab2", VP, da.grid(VP, 3))
    old = {k: v for k, v in json.loads(table.to_json()).items() if k != "mean"} | {"mean_outputs": [0.0] * 4}
    assert da.Tableau.from_json(json.dumps(old)).to_json() == table.to_json()


def test_sizes_are_bounded_before_anything_is_allocated():
    class Endless(list):
        def __len__(self):
            return MOST + 1

        def __iter__(self):
            raise AssertionError("looked into")

    with pytest.raises(ValueError, match="a list of at most 10,000,000 entries"):
        Document({"times": Endless()}, "a table").numbers("times")
    table = da.Tableau.from_json(da.build("ddim", VP, da.grid(VP, 30_000, "t1")).to_json())
    assert table.nfe == 30_000  # read; what cannot be held as a dense matrix is refused before it is made
    with pytest.raises(ValueError, match="30000 calls are too many for a Butcher form"):
        table.butcher()
    for name in ("states", "outputs"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(30001, 30001\), too large for a dense matrix"):
            getattr(table, name)


@pytest.mark.parametrize(("changes", "match"), [
    ({"labels": 3}, "labels=3 must be a sequence"),
    ({"labels": "abcd"}, "labels='abcd' must be a sequence"),
    ({"labels": (1, 2, 3, 4)}, "labels=1 must be a str"),
    ({"grid_nodes": (0, 1.5, 3)}, "grid_nodes=1.5 must be an integer"),
    ({"grid_nodes": 3}, "grid_nodes=3 must be a sequence"),
    ({"grid_nodes": (0, 10**30)}, "must increase from 0 to 3"),
    ({"mean": "abc"}, "mean='abc' must be made of real numbers"),
    ({"mean": np.nan}, "mean=nan must be finite"),
    ({"name": 3}, "name=3 must be a str"),
    ({"process": "VP"}, "process='VP' must be a Process"),
    ({"times": "abc"}, "times='abc' must be made of real numbers"),
    ({"times": None}, "times=None must be made of real numbers"),
    ({"times": [1.0, 0.7, np.nan, 0.1]}, "times must be finite"),
    ({"times": [1.0, 0.7, 10**400, 0.1]}, "times=.* must be made of real numbers"),
    ({"states": None}, "states=None must be made of real numbers"),
    ({"intervals": [["a", "b"]] * 3}, "intervals=.* must be made of real numbers"),
])  # fmt: skip
def test_arguments_of_a_table(changes, match):
    with pytest.raises(ValueError, match=match):
        TABLE.changed(**changes)


def test_tables_of_the_scheduler():
    """Its file stands alone, so it checks by itself."""
    from deis_analysis.interop.scheduler import read_table

    rows = portable(TABLE, VP).rows()
    assert read_table(rows).calls == [0, 1, 2]
    for path, value, match in (
        (("states", 1, 0, 0), 0.5, "not made of numbers"),
        (("states", 1, 0, 0), "0", "not made of numbers"),
        (("outputs", 1, 0, 1), "1.5", "not made of numbers"),
        (("outputs", 1, 0, 1), True, "not made of numbers"),
        (("outputs", 1), [[0, 0.5], [0, 0.5]], "one place stands twice in"),
        (("grid_nodes", 1), 1.5, "not made of numbers"),
        (("told", 1), "3", "not made of numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            read_table(changed(rows, path, value))


@pytest.mark.parametrize("text", [NESTED, "[" + "9" * 400 + "]", '["1"]', "[NaN, 1]", '{"sigmas": "abc"}'])
def test_lists_of_levels(text):
    for read in (read_levels, read_ratios):
        with pytest.raises(ValueError, match=r"source|levels|ratios"):
            read(text)


def test_a_file_is_read_whole_or_named(tmp_path):
    import os

    file = tmp_path / "table.json"
    file.write_text(TABLE.to_json())
    assert da.Tableau.from_json(read_text(file)).to_json() == TABLE.to_json()
    with pytest.raises(ValueError, match=r"table.json' has .* bytes; allowed: at most 100"):
        read_text(file, most=100)
    file.write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "pipe")
    for name in ("table.json", "pipe", "nothing", ""):
        with pytest.raises(ValueError, match=r"cannot be read|is no file"):
            read_text(tmp_path / name)
