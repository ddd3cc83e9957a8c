"""The tap store: what is written comes back bit for bit, and nothing half-written is ever read."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from fastav.backbones import TapStore

SHAPES = [(6, 4), (3, 8)]


def some_taps(rows, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, *shape, generator=generator).to(dtype) for shape in shapes]


def finished(path, rows=7, **options):
    store, taps = TapStore.create(path, rows, SHAPES, **options), some_taps(rows)
    store.write(0, taps)
    return store, taps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reopen", [False, True])
def test_round_trip_is_exact(tmp_path, dtype, reopen):
    taps = some_taps(7, dtype)
    store = TapStore.create(tmp_path, 7, SHAPES, dtype, names=["low", "high"], metadata={"backbone": "x"})
    store.write(4, [tap[4:] for tap in taps])
    assert not store.finished
    store.write(0, [tap[:4] for tap in taps])
    if reopen:
        store = TapStore.open(tmp_path)
    assert store.finished
    assert len(store) == 7
    assert (store.shapes, store.dtype, store.names) == (tuple(SHAPES), dtype, ("low", "high"))
    assert store.metadata == {"backbone": "x"}
    assert store.nbytes == 7 * 48 * dtype.itemsize
    assert all(map(torch.equal, store[:], taps))
    assert all(tap.dtype == dtype for tap in store[2])


def test_files_are_plain_npy(tmp_path):
    _, taps = finished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "tap_000.npy", "tap_001.npy"]
    assert np.array_equal(np.load(tmp_path / "tap_001.npy"), taps[1].half().numpy())


def test_bfloat16_is_stored_as_its_words(tmp_path):
    _, taps = finished(tmp_path, dtype=torch.bfloat16)
    words = torch.from_numpy(np.load(tmp_path / "tap_000.npy"))
    assert torch.equal(words, taps[0].bfloat16().view(torch.int16))


@pytest.mark.parametrize(
    "indices",
    [
        slice(None),
        slice(2, 5),
        slice(None, None, -2),
        slice(5, 2),
        [3],
        [6, 0, 0, -1],
        (1, 2, 3),
        range(2, 6),
        [],
        np.array([5, 4]),
        torch.tensor([0, 6, 2]),
        torch.tensor([1, 2], dtype=torch.uint8),
    ],
)
def test_rows_are_those_asked_for(tmp_path, indices):
    store, taps = finished(tmp_path)
    rows = list(range(7)[indices]) if isinstance(indices, slice) else [int(i) for i in indices]
    for read, tap in zip(store[indices], taps, strict=True):
        assert torch.equal(read, tap.half()[rows])


def test_one_row_has_no_batch_axis(tmp_path):
    store, taps = finished(tmp_path)
    for index in (3, -4, torch.tensor(3), np.int64(3)):
        assert all(torch.equal(read, tap[3].half()) for read, tap in zip(store[index], taps, strict=True))
    assert len(list(store)) == 7


@pytest.mark.parametrize("indices", [7, -8, [0, 7], torch.tensor([-8])])
def test_rows_outside_are_refused(tmp_path, indices):
    with pytest.raises(IndexError, match="7 rows"):
        finished(tmp_path)[0][indices]


@pytest.mark.parametrize("indices", [1.0, [0.5], torch.ones(7, dtype=torch.bool), [[0, 1]]])
def test_other_indices_are_refused(tmp_path, indices):
    with pytest.raises(TypeError, match="indices must be"):
        finished(tmp_path)[0][indices]


def test_what_is_read_is_a_copy(tmp_path):
    finished(tmp_path)
    store = TapStore.open(tmp_path)
    for indices in (0, slice(None), [0, 1]):
        before = store[indices][0].clone()
        store[indices][0].zero_()
        assert torch.equal(store[indices][0], before)
    assert np.load(tmp_path / "tap_000.npy").any()


def test_an_unfinished_store_is_not_read(tmp_path):
    store = TapStore.create(tmp_path, 7, SHAPES)
    store.write(0, some_taps(6))
    with pytest.raises(ValueError, match="6 of 7 rows"):
        store[0]
    with pytest.raises(ValueError, match="unfinished"):
        TapStore.open(tmp_path)


def test_a_crash_before_the_index_is_replaced_leaves_it_unfinished(tmp_path, monkeypatch):
    store = TapStore.create(tmp_path, 7, SHAPES)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write(0, some_taps(7))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="unfinished"):
        TapStore.open(tmp_path)


def test_an_unfinished_store_is_overwritten_and_a_finished_one_is_not(tmp_path):
    TapStore.create(tmp_path, 9, [(2, 2)] * 3)
    _, taps = finished(tmp_path)
    assert len(list(tmp_path.glob("tap_*.npy"))) == 2
    with pytest.raises(FileExistsError, match="finished store"):
        TapStore.create(tmp_path, 7, SHAPES)
    assert torch.equal(TapStore.open(tmp_path)[:][0], taps[0].half())


@pytest.mark.parametrize("anew", [False, True])
def test_a_store_that_another_took_the_place_of_is_not_finished(tmp_path, anew):
    """As where two processes fill one cache: the other's rows are not there yet, and would be read as zeros."""
    first = TapStore.create(tmp_path / "s", 3, SHAPES)
    first.write(0, some_taps(2))
    shutil.rmtree(tmp_path / "s")
    if anew:
        TapStore.create(tmp_path / "s", 3, SHAPES)
    with pytest.raises(ValueError, match="was removed or begun anew while this store was written"):
        first.write(2, some_taps(1))
    assert not first.finished
    with pytest.raises(ValueError if anew else FileNotFoundError):
        TapStore.open(tmp_path / "s")


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="other files"):
        TapStore.create(tmp_path, 7, SHAPES)


def test_a_finished_store_takes_no_more(tmp_path):
    store, taps = finished(tmp_path)
    with pytest.raises(ValueError, match="finished"):
        store.write(0, taps)


@pytest.mark.parametrize(
    ("start", "taps", "message"),
    [
        (5, some_taps(3), "rows 5 to 8 do not fit into a store of 7"),
        (-1, some_taps(3), "rows -1 to 2"),
        (0, some_taps(3)[:1], "1 taps of 3 rows given, 2 taps"),
        (0, [], "0 taps"),
        (0, some_taps(0), "2 taps of 0 rows"),
        (0, some_taps(3)[::-1], r"tap '0' is \(3, 3, 8\), \(3, 6, 4\) is wanted"),
        (0, [some_taps(3)[0], some_taps(2)[1]], r"tap '1' is \(2, 3, 8\), \(3, 3, 8\)"),
        (0, [some_taps(3)[0], some_taps(3)[1] * 1e6], r"tap '1' is not finite as torch.float16 .*bfloat16"),
        (0, [some_taps(3)[0] * float("nan"), some_taps(3)[1]], "tap '0' is not finite"),
    ],
)
def test_wrong_rows_are_refused_and_none_is_written(tmp_path, start, taps, message):
    store = TapStore.create(tmp_path, 7, SHAPES)
    with pytest.raises(ValueError, match=message):
        store.write(start, taps)
    assert not any(np.load(tmp_path / f"tap_00{i}.npy").any() for i in range(2))


def test_large_values_fit_into_bfloat16(tmp_path):
    store, taps = TapStore.create(tmp_path, 2, SHAPES, torch.bfloat16), [tap * 1e6 for tap in some_taps(2)]
    store.write(0, taps)
    assert torch.equal(store[:][0], taps[0].bfloat16())


def test_metadata_must_agree(tmp_path):
    finished(tmp_path, metadata={"size": (192, 192), "model": "swin", "rate": 16000})
    assert TapStore.open(tmp_path, metadata={"size": (192, 192)}).metadata["model"] == "swin"
    with pytest.raises(ValueError, match=r"model is 'swin' in the store, 'vit' was asked for; crop is 'absent'"):
        TapStore.open(tmp_path, metadata={"rate": 16000, "model": "vit", "crop": None})


def test_damage_is_noticed(tmp_path):
    finished(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        TapStore.open(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({**index, "length": 8}))
    with pytest.raises(ValueError, match=r"tap_000\.npy holds \(7, 6, 4\), not \(8, 6, 4\)"):
        TapStore.open(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(index))
    data = (tmp_path / "tap_001.npy").read_bytes()
    (tmp_path / "tap_001.npy").write_bytes(data[:-5])
    with pytest.raises(ValueError, match="mmap"):
        TapStore.open(tmp_path)


def test_no_store_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tap store"):
        TapStore.open(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"shapes": []},
        {"shapes": [(0, 4)]},
        {"shapes": [(4,)]},
        {"dtype": torch.int64},
        {"names": ["one"]},
        {"names": ["one", "one"]},
    ],
)
def test_senseless_stores_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"length|dtype|names"):
        TapStore.create(tmp_path / "store", **{"length": 7, "shapes": SHAPES, **options})
    assert not (tmp_path / "store").exists()


def test_a_small_disk_is_noticed_beforehand(tmp_path):
    with pytest.raises(OSError, match=r"needs 98304\.0 GB"):
        TapStore.create(tmp_path, 10**9, [(192, 256)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_copies_read_the_same_files(tmp_path, clone):
    store, taps = finished(tmp_path)
    assert len(pickle.dumps(store)) < 1000
    assert torch.equal(clone(store)[:][1], taps[1].half())


def test_some_taps_alone(tmp_path):
    store, taps = finished(tmp_path, names=["low", "high"])
    one, turned = store.select(["high"]), store.select(["high", "low"])
    assert (one.names, one.shapes, one.nbytes) == (("high",), (SHAPES[1],), 7 * 24 * 2)
    assert torch.equal(one[[5, 0]][0], taps[1][[5, 0]].half())
    assert [len(one[2]), len(turned[2])] == [1, 2]
    assert torch.equal(turned[:][1], taps[0].half())
    again = pickle.loads(pickle.dumps(one))
    assert (again.names, torch.equal(again[:][0], one[:][0])) == (("high",), True)
    with pytest.raises(ValueError, match=r"has no taps \['top'\]: its names are \['low', 'high'\]"):
        store.select(["low", "top"])
    with pytest.raises(ValueError, match="is unfinished"):
        TapStore.create(tmp_path / "new", 7, SHAPES).select(["0"])


def test_a_data_loader_batches_rows(tmp_path):
    store, taps = finished(tmp_path)
    batches = list(torch.utils.data.DataLoader(store, batch_size=4, num_workers=1))
    assert [len(batch[0]) for batch in batches] == [4, 3]
    assert torch.equal(torch.cat([batch[1] for batch in batches]), taps[1].half())


def test_repr(tmp_path):
    assert repr(TapStore.create(tmp_path, 7, SHAPES)).endswith("7 rows of 2 taps, torch.float16, 0.000 GB, unfinished)")
