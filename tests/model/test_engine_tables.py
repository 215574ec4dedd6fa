"""The embedding tables are held once: by both towers of a process, and by all processes together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Exported

from model.artifact.external import Table, tables_of
from model.artifact.manifest import CANDIDATE_TOWER, MANIFEST, TABLES, USER_TOWER, ArtifactError, describe_file
from model.artifact.providers import session_options
from model.artifact.tables import SharedTables, map_file
from model.embedding import table_key

TOWERS = (USER_TOWER, CANDIDATE_TOWER)
MB = 1 << 20
GROWN_BYTES = 100 * MB

# Opens the artifact, runs both towers, then says how tables.data is mapped (kB) and what the process holds alone.
HOLDER = """
import json, re, sys
from model.artifact.engine import Engine
def private():
    return sum(int(v) for v in re.findall(r"^Anonymous: +(\\d+) kB", open("/proc/self/smaps_rollup").read(), re.M))
before = private()
engine = Engine.load(sys.argv[1])
engine.check_golden()
print("ready", flush=True)
sys.stdin.readline()
parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.M)
mappings = [part for part in parts if part.splitlines() and part.splitlines()[0].endswith("tables.data")]
kb = lambda name: sum(int(v) for part in mappings for v in re.findall(rf"^{name}: +(\\d+) kB", part, re.M))
found = {name: kb(name) for name in ("Rss", "Pss", "Anonymous")}
print(json.dumps(found | {"mappings": len(mappings), "private": private() - before}), flush=True)
sys.stdin.readline()
"""


def external(graph: Path) -> dict[str, tuple[list[int], int]]:
    """Shape and offset of the tensors in tables.data, as the onnx package reads them."""
    found = {}
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == TABLES:
            found[tensor.name] = (list(tensor.dims), int(entries["offset"]))
    return found


@pytest.fixture(scope="module")
def grown(farm: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FARM with 100 MB behind the rows of the authors' table, which both towers read."""
    folder = Path(shutil.copytree(farm.path, tmp_path_factory.mktemp("grown") / "artifact"))
    key = table_key(farm.model.view.table_name("candidate", farm.model.view.fields("candidate")[0]))
    table = farm.model.tables[key].weight.detach().numpy()
    rows = GROWN_BYTES // (4 * table.shape[1])
    start = (folder / TABLES).stat().st_size + -(folder / TABLES).stat().st_size % 4096
    with (folder / TABLES).open("r+b") as file:
        file.seek(start)
        file.write(table.tobytes())
        file.write(np.ones((rows - len(table), table.shape[1]), np.float32).tobytes())
    for tower in TOWERS:
        graph = onnx.load(str(folder / tower), load_external_data=False)
        (tensor,) = [t for t in graph.graph.initializer if t.name.endswith(f"tables.{key}.weight")]
        tensor.dims[0] = rows
        for entry in tensor.external_data:
            entry.value = {"offset": str(start), "length": str(rows * table.shape[1] * 4)}.get(entry.key, entry.value)
        (folder / tower).write_bytes(graph.SerializeToString())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] |= {name: describe_file(folder / name).model_dump() for name in (TABLES, *TOWERS)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("tower", TOWERS)
def test_the_tables_of_a_graph_are_read_as_onnx_reads_them(farm: Exported, tower: str) -> None:
    found = {name: (list(table.shape), table.offset) for name, table in tables_of(farm.path / tower)}
    assert found == external(farm.path / tower)
    assert found
    assert {table.dtype for _, table in tables_of(farm.path / tower)} == {"<f4"}


def test_dims_may_be_packed(tmp_path: Path) -> None:
    """Both ways in which protobuf writes a list of numbers, beside fields of fixed width that are passed over."""
    place = b"".join(
        field(13, field(1, k) + field(2, v)) for k, v in ((b"location", b"tables.data"), (b"offset", b"64"))
    )
    packed = field(1, bytes([0xAC, 0x02, 3])) + bytes([2 << 3, 10]) + field(8, b"t") + place  # 300 x 3 of float16
    plain = bytes([1 << 3, 5]) + bytes([2 << 3, 1]) + field(8, b"u") + place + bytes([9 << 3 | 1]) + bytes(8)
    file = tmp_path / "graph.onnx"
    file.write_bytes(bytes([1 << 3, 10]) + field(7, field(5, packed) + field(5, plain)))
    assert tables_of(file) == [("t", Table("<f2", (300, 3), 64)), ("u", Table("<f4", (5,), 64))]


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize("content", [b"", b"\xff", b"no graph at all", bytes([7 << 3, 1])])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "graph.onnx"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(str(file))):
        tables_of(file)


def test_a_table_beyond_the_file_is_refused(farm: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(farm.path, tmp_path / "artifact"))
    os.truncate(folder / TABLES, 1000)
    with pytest.raises(ArtifactError, match=re.escape(f"{folder / TABLES}: a table ends at byte")):
        SharedTables(folder).give(session_options(threads=1), CANDIDATE_TOWER)


def test_a_mapped_file_is_read_only_and_may_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "tables"
    file.write_bytes(b"")
    assert len(map_file(file)) == 0
    file.write_bytes(b"abc")
    mapped = map_file(file)
    assert bytes(mapped) == b"abc"
    assert not mapped.flags.writeable


def test_two_processes_share_the_tables_and_each_holds_them_once(grown: Path) -> None:
    size_kb = (grown / TABLES).stat().st_size / 1024
    command = [sys.executable, "-c", HOLDER, str(grown)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        holders = (first, second)
        for holder in holders:
            assert holder.stdout.readline() == "ready\n"
        reports = [ask(holder) for holder in holders]
        for holder in holders:
            holder.stdin.write("\n")
            holder.stdin.flush()
    for report in reports:
        assert report["mappings"] == 1  # for both towers
        assert report["Anonymous"] == 0  # no page of it was copied
        assert size_kb <= report["Rss"] <= size_kb + 4  # all of it is here before a request asks
        assert report["Pss"] <= 0.51 * size_kb  # and counts half, since two share it
        assert report["private"] < 0.5 * size_kb  # no copy elsewhere


def ask(holder: subprocess.Popen) -> dict[str, int]:
    holder.stdin.write("\n")
    holder.stdin.flush()
    report: dict[str, int] = json.loads(holder.stdout.readline())
    return report
