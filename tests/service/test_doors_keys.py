"""Keys: how they are made, kept, found, rotated."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service.doors import ring
from service.doors.keys import StoredKey, matching, new_key, parse_keys
from service.doors.ring import KeyRing
from service.doors.verbs import keys as keys_verb


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the ring logs."""
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger(ring.__name__)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept() -> None:
    made = [new_key(["rank"], "shop", 8, datetime(2999, 1, 1, tzinfo=UTC)) for _ in range(20)]
    key, stored = made[0]
    _, key_id, secret = key.split("_", 2)
    assert (key_id, len(secret)) == (stored.id, 43)  # 32 bytes in base64 without padding
    assert stored.hash == hashlib.sha256(key.encode()).hexdigest()
    assert secret not in stored.line()
    assert json.loads(stored.line()) == {
        "id": stored.id,
        "hash": stored.hash,
        "scopes": ["rank"],
        "name": "shop",
        "limit": 8,
        "expires": "2999-01-01T00:00:00Z",
    }
    assert parse_keys(stored.line(), "here") == {stored.id: stored}
    assert len({each[:20] for each, _ in made}) == len({stored.id for _, stored in made}) == 20


def test_only_the_whole_key_is_the_key() -> None:
    (first, kept), (second, other) = new_key(["rank"]), new_key(["events"])
    keys = {kept.id: kept, other.id: other}
    assert matching(keys, first.encode()) is kept
    assert matching(keys, second.encode()) is other
    secret = second.split("_", 2)[2]
    near = (first[:-1], first + "a", first.upper(), f"farm_{kept.id}_{secret}", f"farm_{kept.id}_", f"farm_{kept.id}")
    for given in (*near, "farm_", "farm", "", "_", kept.hash, f"farm__{kept.id}", "farm_\xff_\xff"):
        assert matching(keys, given.encode("latin-1")) is None


GOOD = json.loads(new_key(["rank"])[1].line())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "invalid json"),
        ("[]", "the line"),
        (json.dumps({**GOOD, "scopes": []}), "scopes"),
        (json.dumps({**GOOD, "scopes": ["root"]}), "'rank', 'events', 'explain' or 'admin'"),
        (json.dumps({**GOOD, "hash": "5ecret"}), "hash"),
        (json.dumps({**GOOD, "id": "A b"}), "id"),
        (json.dumps({**GOOD, "limit": 0}), "limit"),
        (json.dumps({**GOOD, "expires": "2027-01-01T00:00:00"}), "expires"),
        (json.dumps({**GOOD, "scope": ["rank"]}), "scope"),
        (json.dumps(GOOD), "is there already"),
    ],
    ids=["json", "list", "scopes", "scope", "hash", "id", "limit", "expires", "field", "again"],
)
def test_a_wrong_line_is_named_but_not_what_it_holds(line: str, says: str) -> None:
    text = "# of the shop\n\n" + json.dumps(GOOD) + "\n" + line
    with pytest.raises(ValueError, match=r"keys\.jsonl, line 4: ") as caught:
        parse_keys(text, "keys.jsonl")
    assert says in str(caught.value)
    assert GOOD["hash"] not in str(caught.value)
    assert "5ecret" not in str(caught.value)


def test_keys_of_file_and_environment(tmp_path: Path) -> None:
    (first, kept), (second, other) = new_key(["rank"]), new_key(["events"])
    file = tmp_path / "keys.jsonl"
    file.write_text(kept.line())
    keys = KeyRing(file, other.line())
    assert keys.configured
    assert (keys.find(first.encode()), keys.find(second.encode())) == (kept, other)
    with pytest.raises(ValueError, match="is in FARM_API_KEYS too"):
        KeyRing(file, kept.line())
    file.write_text("# nothing yet\n")
    for wrong in ((file, ""), (None, "# nothing")):
        with pytest.raises(ValueError, match="holds no key; `farm keys new` makes one"):
            KeyRing(*wrong)
    with pytest.raises(ValueError, match=r"cannot be read: .*No such file"):
        KeyRing(tmp_path / "absent.jsonl")
    assert not KeyRing().configured


def test_rotation_is_seen_after_a_second_and_a_broken_file_changes_nothing(tmp_path: Path, logged: list[str]) -> None:
    (old, kept), (new, other) = new_key(["rank"]), new_key(["rank"])
    file, clock = tmp_path / "keys.jsonl", Clock()
    file.write_text(kept.line())
    keys = KeyRing(file, clock=clock)

    def known() -> tuple[bool, bool]:
        return keys.find(old.encode()) is not None, keys.find(new.encode()) is not None

    put(file, f"{kept.line()}\n{other.line()}")
    clock.now = 0.99
    assert known() == (True, False)
    clock.now = 1.0
    assert known() == (True, True)
    for number, broken in enumerate(('{"id": ', other.line() + "\n{}")):
        put(file, broken)
        clock.now = 2.0 + number
        logged.clear()
        assert known() == known() == (True, True)
        clock.now += 0.999
        assert known() == (True, True)
        assert [line[:27] for line in logged] == ["the keys stay as they were:"]
        assert kept.hash not in logged[0]
        assert other.hash not in logged[0]
    file.unlink()
    clock.now = 5.0
    assert known() == (True, True)
    put(file, other.line())
    clock.now = 6.0
    assert known() == (False, True)
    put(file, "")
    clock.now = 7.0
    assert known() == (False, False)
    assert keys.configured


def test_a_file_that_could_not_be_read_is_read_the_next_time(
    tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, kept), (new, other) = new_key(["rank"]), new_key(["rank"])
    file, clock = tmp_path / "keys.jsonl", Clock()
    file.write_text(kept.line())
    keys = KeyRing(file, clock=clock)
    put(file, other.line())
    with monkeypatch.context() as without:
        without.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        for clock.now in (1.0, 2.0):
            assert keys.find(old.encode()) is not None
    assert len([line for line in logged if "Too many open files" in line]) == 1
    clock.now = 3.0
    assert keys.find(old.encode()) is None
    assert keys.find(new.encode()) is not None


def test_a_file_of_the_same_size_and_time_is_seen_by_its_inode(tmp_path: Path) -> None:
    (old, kept), (new, other) = new_key(["rank"]), new_key(["rank"])
    file, clock = tmp_path / "keys.jsonl", Clock()
    file.write_text(kept.line())
    keys = KeyRing(file, clock=clock)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    second = tmp_path / "next"
    second.write_text(other.line())
    os.utime(second, ns=times)
    assert (second.stat().st_size, second.stat().st_mtime_ns) == (file.stat().st_size, times[1])
    second.replace(file)
    clock.now = 1.0
    assert keys.find(old.encode()) is None
    assert keys.find(new.encode()) == other


def test_the_verb_prints_the_key_once_and_adds_the_line(tmp_path: Path) -> None:
    runner, file = CliRunner(), tmp_path / "keys.jsonl"
    key, line = runner.invoke(keys_verb, ["new", "--scopes", "rank,events", "--name", "shop"]).stdout.splitlines()
    stored = StoredKey.model_validate_json(line)
    assert stored.scopes == {"rank", "events"}
    assert stored.name == "shop"
    assert matching({stored.id: stored}, key.encode()) == stored
    for number in (1, 2):
        printed = runner.invoke(keys_verb, ["new", "--scopes", "admin", "--expires", "2999-01-01", "--file", str(file)])
        found = KeyRing(file).find(printed.stdout.strip().encode())
        assert found is not None
        assert found.expires == datetime(2999, 1, 1, tzinfo=UTC)
        assert len(file.read_text().splitlines()) == number
        assert printed.stdout.strip() not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.jsonl"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scopes", "root"], "--scopes"),
        (["--scopes", "rank", "--name", "n" * 101], "--name"),
        (["--scopes", "rank", "--expires", "2020-01-01"], "--expires"),
        (["--scopes", "rank", "--file", "nowhere/at/all/keys.jsonl"], "nowhere/at/all/keys.jsonl cannot be"),
    ],
)
def test_the_verb_names_the_wrong_option(options: list[str], says: str) -> None:
    refused = CliRunner().invoke(keys_verb, ["new", *options])
    assert refused.exit_code == 2
    assert says in refused.output


def test_the_verb_keeps_off_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("milk\n")
    refused = CliRunner().invoke(keys_verb, ["new", "--scopes", "rank", "--file", str(tmp_path / "notes.txt")])
    assert refused.exit_code == 2
    assert (tmp_path / "notes.txt").read_text() == "milk\n"


def test_a_key_without_a_good_scope_is_not_made() -> None:
    with pytest.raises(ValidationError):
        new_key(["root"])  # type: ignore[list-item]


def put(file: Path, text: str) -> None:
    """As an operator should: by renaming."""
    written = file.with_suffix(".new")
    written.write_text(text)
    written.replace(file)
