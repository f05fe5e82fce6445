import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.rendezvous.protocol.messages import (
    Beat,
    Closed,
    Message,
    Propose,
    Report,
    Round,
    Seat,
    decode,
    encode,
)

SEATS = st.builds(
    Seat,
    name=st.text(),
    incarnation=st.text(),
    address=st.text(),
    num_workers=st.integers(0, 9),
    candidate=st.integers(-1, 9),
)
IDS = st.tuples(st.integers(), st.integers())
ROUNDS = st.builds(
    Round,
    term=st.integers(),
    number=st.integers(),
    seats=st.lists(SEATS).map(tuple),
    store_port=st.integers(0, 65535),
    is_fenced=st.booleans(),
)
MESSAGES = st.one_of(
    st.builds(
        Report,
        serial=st.integers(),
        seat=SEATS,
        promised=st.integers(),
        last=st.none() | ROUNDS,
        pending=st.none() | ROUNDS,
        grounds=st.lists(ROUNDS, max_size=2).map(tuple),
        at=IDS,
        is_waiting=st.booleans(),
        known=st.integers(),
        gone=st.lists(st.integers()).map(tuple),
    ),
    st.builds(
        Beat,
        serial=st.integers(),
        promised=st.integers(),
        last=IDS,
        at=IDS,
        is_waiting=st.booleans(),
    ),
    st.builds(Propose, round=ROUNDS, grounds=st.lists(ROUNDS, max_size=2).map(tuple)),
    st.builds(Closed, reason=st.text(), is_success=st.booleans()),
)


@given(MESSAGES)
def test_what_is_sent_arrives(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@given(st.binary())
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (all that decode promises)
        decode(noise)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"kind": "Round"},
        {"kind": "Lead"},
        {"kind": "Lead", "term": "1"},
        {"kind": "Lead", "term": True},
        {"kind": "Over", "id": 3, "reason": ""},
        {"kind": "Go", "term": 1, "round": {"term": 1, "number": 1, "seats": [{"name": 1}]}},
        {"kind": "Host", "round": None},
    ],
)
def test_a_field_that_is_wrong_or_missing_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r"no |lacks"):
        decode(json.dumps(document).encode())
