"""Every word of the rendezvous is explained, and what explains it is still there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from bundlerun.launcher.rendezvous.protocol import messages, standing, state, votes
from bundlerun.launcher.rendezvous.protocol.coordinator import TryClaim
from bundlerun.launcher.rendezvous.protocol.events import Claimed
from bundlerun.launcher.rendezvous.protocol.standing import InRound, Member
from bundlerun.launcher.rendezvous.protocol.state import Peer, Proposal, Rules, State, Stay
from bundlerun.launcher.rendezvous.settings import Conf

DOCUMENT = Path(__file__).parents[5] / "docs" / "rendezvous.md"


def test_the_fields_that_the_glossary_names_exist() -> None:
    glossary = DOCUMENT.read_text().split("## Words")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)\.(\w+)`", "".join(re.findall(r"^\|.*\|$", glossary, re.M)))
    assert len(named) > 25
    for owner, name in named:
        places = [vars(module).get(owner) for module in (messages, standing, state)]
        found = votes if owner == "votes" else next(place for place in places if place)
        known = getattr(found, "__dataclass_fields__", {})
        assert name in known or hasattr(found, name), f"{owner}.{name}"


@pytest.mark.parametrize(
    "kind", [Member, InRound, State, Peer, Stay, Proposal, Rules, Conf, Claimed, TryClaim]
)
def test_every_field_is_explained(kind: type) -> None:
    text = (kind.__doc__ or "").split("Attributes:")[1]
    explained = re.findall(r"^ {8}(\w+):", text, re.M)
    assert explained == [each.name for each in fields(kind)]
