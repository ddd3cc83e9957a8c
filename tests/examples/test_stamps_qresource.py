"""Qt resource files built here, byte by byte."""

import struct
import zlib

import pytest

from examples.stamps.qresource import read_qresource

FILES = {"readme.txt": b"hello", "pictures/cow.webp": b"moo" * 100, "pictures/näher/owl.webp": b""}


def build(files, version=3, compress=False, flags=0):
    """Lay out a resource file: header, tree in breadth-first order, names, contents."""
    root = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = content
    queue, records, names, contents = [("", root)], b"", b"", b""
    next_child = 1
    for name, node in queue:
        offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(node, dict):
            records += struct.pack(">IHII", offset, 2, len(node), next_child)
            next_child += len(node)
            queue += node.items()
        else:
            records += struct.pack(">IHHHI", offset, flags | compress, 0, 0, len(contents))
            body = struct.pack(">I", len(node)) + zlib.compress(node) if compress else node
            contents += struct.pack(">I", len(body)) + body
        records += bytes(8 if version > 1 else 0)
    header = 24 if version > 2 else 20
    parts = (header, header + len(records) + len(names), header + len(records))
    data = b"qres" + struct.pack(">4I", version, *parts)
    return data.ljust(header, b"\0") + records + names + contents


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compress", [False, True])
def test_reads_all_files(tmp_path, version, compress):
    path = tmp_path / "some.rcc"
    path.write_bytes(build(FILES, version, compress))
    assert read_qresource(path) == FILES


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: b"PK\3\4" + data[4:], "it starts with"),
        (lambda data: data[:4] + b"\0\0\0\7" + data[8:], "version 7"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:10], "cut short"),
        (lambda data: data[:30] + b"\xff\xff\xff\xff" + data[34:], "claims"),
        (lambda data: data[:34] + b"\0\0\0\0" + data[38:], "more records"),  # the root is its own child
    ],
)
def test_malformed(tmp_path, damage, complaint):
    path = tmp_path / "some.rcc"
    path.write_bytes(damage(build(FILES)))
    with pytest.raises(ValueError, match=complaint) as caught:
        read_qresource(path)
    assert str(path) in str(caught.value)


def test_zstandard_is_refused(tmp_path):
    path = tmp_path / "some.rcc"
    path.write_bytes(build(FILES, flags=4))
    with pytest.raises(ValueError, match="Zstandard"):
        read_qresource(path)


def test_missing(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        read_qresource(tmp_path / "none.rcc")
