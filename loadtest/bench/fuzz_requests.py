"""Of `farm bench fuzz`: strategies for requests that clients might send by mistake, by malice or rightly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

_LIMIT = 2**63
_TEXT = st.text(max_size=20)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXT)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4), max_leaves=8
)
_IDS = st.one_of(
    st.integers(0, 5_000),
    st.integers(1 - _LIMIT, _LIMIT - 1),
    st.integers(1 - _LIMIT, _LIMIT - 1).map(str),
    st.sampled_from([-_LIMIT, _LIMIT, 2**53, -(2**53), 2**53 + 1, 0, "", "-0", "007", "1e3", "٣", 1.0, True]),
)
_TIMES = st.integers(0, 4_200_000_000_000) | st.sampled_from([946_684_800_000, 4_102_444_800_000])
_CANDIDATES = st.one_of(
    st.lists(st.integers(1, 10**9), min_size=1, max_size=8, unique=True),
    st.lists(_IDS | st.fixed_dictionaries({"author_id": _IDS}, optional={"live_id": _IDS | st.none()}), max_size=8),
    st.integers(1, 2_100).map(lambda count: list(range(count))),
)
_RANK = st.fixed_dictionaries(
    {"user_id": _IDS, "candidates": _CANDIDATES},
    optional={
        "page": st.integers(-_LIMIT - 1, _LIMIT) | st.none(),
        "top_k": st.integers(-1, 2_001) | st.none(),
        "now_ms": _TIMES | st.none(),
        "debug": st.booleans() | st.none(),
        "deadline_ms": st.integers(-1, 10**12) | st.none(),
    },
)
_KINDS = st.sampled_from(["video_view", "live_view", "author", "user"]) | _TEXT
_EVENT = st.fixed_dictionaries(
    {"type": _KINDS},
    optional={
        **dict.fromkeys(("user_id", "view_id", "author_id", "live_id"), _IDS),
        **dict.fromkeys(("event_time", "known_at", "updated_at"), _TIMES),
        **dict.fromkeys(("play_time", "page", "tag", "cluster", "activity_group"), st.integers(-_LIMIT - 1, _LIMIT)),
        "behaviours": st.lists(st.sampled_from(["click", "like", "share"]) | _TEXT, max_size=4),
    },
)
_RIGHT_RANK = st.fixed_dictionaries(
    {
        "user_id": st.integers(1 - _LIMIT, _LIMIT - 1),
        "candidates": st.lists(st.integers(1 - _LIMIT, _LIMIT - 1), min_size=1, max_size=30, unique=True),
    },
    optional={
        "page": st.integers(-_LIMIT, _LIMIT - 1),
        "top_k": st.integers(1, 2_000),
        "now_ms": st.integers(946_684_800_000, 4_102_444_800_000),
        "debug": st.booleans(),
    },
)
_RIGHT_EVENT = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["video_view", "live_view"]),
        "user_id": st.integers(0, 1_000),
        "view_id": st.integers(0, _LIMIT - 1),
        "event_time": st.integers(1_600_000_000_000, 1_700_000_000_000),
    },
    optional={"author_id": st.integers(0, 10**9), "page": st.integers(0, 5), "play_time": st.integers(0, 10**6)},
)
_RIGHT_EVENTS = st.fixed_dictionaries({"events": st.lists(_RIGHT_EVENT, min_size=1, max_size=4)})
_EVENTS = st.fixed_dictionaries({"events": st.lists(_EVENT, max_size=6)})

Extra = Literal["", "headers", "type"]
_EXTRAS: tuple[Extra, ...] = ("", "", "", "headers", "headers", "type")  # one in six is not JSON by its header
_PATHS = st.sampled_from(["/rank", "/events"])
_OTHER_PATHS = st.sampled_from(
    ["/", "/rank/", "//rank", "/Rank", "/version", "/livez", "/readyz", "/openapi.json", "/docs", "/metrics", "/models"]
)
_CONTENT_TYPES = st.sampled_from(
    ["text/plain", "application/json; charset=utf-16", "APPLICATION/JSON", "application/json;", "a" * 3_000, "/"]
)
_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
_HEADERS = st.dictionaries(
    st.sampled_from(
        ["X-Request-Id", "X-Deadline-Ms", "X-Priority", "Authorization", "Accept", "Content-Encoding", "Expect", "Via"]
    ),
    _VALUES | st.sampled_from(["0", "-1", "1e9", "low", "high", "Bearer x", "gzip", "100-continue", "9" * 400]),
    max_size=3,
)


@dataclass(frozen=True)
class FuzzedRequest:
    """One request to the public port."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def requests() -> st.SearchStrategy[FuzzedRequest]:
    """Right ones, nearly right ones, and noise."""
    aimed = st.tuples(st.just("/rank"), _bodies(_RANK, _RIGHT_RANK)) | st.tuples(
        st.just("/events"), _bodies(_EVENTS, _RIGHT_EVENTS)
    )
    posted = st.builds(_posted, aimed, st.sampled_from(_EXTRAS), _CONTENT_TYPES, _HEADERS)
    methods = st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "POST"])
    others = st.builds(FuzzedRequest, methods, _OTHER_PATHS | _PATHS, _HEADERS, st.binary(max_size=20))
    return st.sampled_from([posted] * 9 + [others]).flatmap(lambda chosen: chosen)


def wire_bytes() -> st.SearchStrategy[bytes]:
    """What is no HTTP, or hardly."""
    return st.one_of(st.binary(max_size=300), st.builds(_torn, _broken_heads(), st.binary(max_size=60), st.integers(0)))


def _posted(aimed: tuple[str, bytes], extra: Extra, content_type: str, headers: dict[str, str]) -> FuzzedRequest:
    own = {"Content-Type": content_type if extra == "type" else "application/json"}
    return FuzzedRequest("POST", aimed[0], own | (headers if extra == "headers" else {}), aimed[1])


def _bodies(objects: st.SearchStrategy[Any], right_objects: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Right ones, ones of the right fields, ones with one field that is wrong, and noise."""
    right = right_objects.map(_encoded)
    nearly = st.builds(_changed, objects, st.integers(0), _TEXT, _JSON).map(_encoded)
    spoilt = st.builds(_spoilt, right, st.integers(0), _noise())
    return st.one_of(right, objects.map(_encoded), nearly, spoilt, _JSON.map(_encoded), _noise())


def _noise() -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda opening, count: opening * count, st.sampled_from([b"[", b'{"a":', b"9", b" "]), st.integers(0, 9_000)
        ),
        st.sampled_from(
            [b"\xef\xbb\xbf{}", b"NaN", b'{"user_id":NaN}', b'{"a":1,"a":2}', b'"\\ud800"', b"\x00", b"{}}"]
        ),
    )


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _changed(value: dict[str, Any], draw: int, name: str, put: Any) -> dict[str, Any]:
    """One field is another, gone or new."""
    names = sorted(value)
    at = names[draw % len(names)]
    if draw % 3 == 0:
        return value | {at: put}
    if draw % 3 == 1:
        return {key: kept for key, kept in value.items() if key != at}
    return value | {name: put}


def _spoilt(body: bytes, draw: int, noise: bytes) -> bytes:
    """Cut off, or with noise within."""
    at = draw % (len(body) + 1)
    return body[:at] if draw % 2 else body[:at] + noise[:20] + body[at:]


def _broken_heads() -> st.SearchStrategy[bytes]:
    return st.sampled_from(
        [
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST /rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            b"POST /rank HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{",
            b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 5_000 + b"\r\n",
            b"GET / HTTP/1.1\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nX A: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /%zz%00%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
    )


def _torn(head: bytes, noise: bytes, draw: int) -> bytes:
    """As it is, cut off, or with noise within."""
    at = draw % (len(head) + 1)
    return (head, head[:at], head[:at] + noise + head[at:])[draw % 3]
