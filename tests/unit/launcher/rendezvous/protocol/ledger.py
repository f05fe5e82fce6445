"""What a test sees from above and no node does: who promised, accepted and entered what."""

from __future__ import annotations

from collections import defaultdict

from bundlerun.launcher.rendezvous.protocol.member import Enter, OpenStore, Wish
from bundlerun.launcher.rendezvous.protocol.messages import (
    Accept,
    Fenced,
    Go,
    Host,
    Lead,
    Propose,
    Round,
    RoundId,
    id_of,
)
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.wishes import Send


class Ledger:
    """Keeps the books and says at once what must never be; knows nothing of the product's rules.

    `commits` are all rounds that a coordinator has put in force, in order of time.
    """

    def __init__(self, num_candidates: int) -> None:
        self.is_lasting = num_candidates > 1
        self.commits: list[Round] = []
        self.accepted: dict[RoundId, set[str]] = defaultdict(set)
        self.promised: dict[str, int] = defaultdict(lambda: -1)
        self.entered: dict[str, RoundId] = {}

    def heard(self, before: Member, message: object, after: Member, wishes: list[Wish]) -> None:
        """A node has answered a message: nothing of a term lower than it has ever promised."""
        who = before.seat.incarnation
        assert after.promised >= self.promised[who], "a node took back what it has promised"
        term = _term_of(message)
        if term is not None and term < self.promised[who]:
            assert _standing(after) == _standing(before), f"{message} of a lower term was followed"
            assert not any(isinstance(wish, (Enter, OpenStore)) for wish in wishes)
        self.promised[who] = after.promised

    def wished(self, me: Member, wish: Wish) -> None:
        """A node accepts or enters a round."""
        who = me.seat.incarnation
        match wish:
            case Send(message=Accept(id=id_, sees_fence=True)):
                assert id_[0] >= self.promised[who], f"{id_} was accepted against a promise"
                self.accepted[id_].add(who)
            case Enter(round=round_):
                assert self.entered.get(who, (-1, 0)) < round_.id, "back to an earlier round"
                self.entered[who] = round_.id

    def committed(self, round_: Round) -> None:
        """A coordinator has put a round in force."""
        seats = {seat.incarnation for seat in round_.seats}
        missing = seats - self.accepted[round_.id]
        assert not missing, f"round {round_.id} is in force, and {missing} never accepted it"
        if self.commits and self.is_lasting and not self.commits[-1].is_fenced:
            self._check_votes(self.commits[-1], seats)
        self.commits.append(round_)

    def _check_votes(self, before: Round, seats: set[str]) -> None:
        old = [seat.incarnation for seat in before.seats]
        votes = [each for each in old if each in seats]
        is_anew = not votes and not self._lives(before)
        is_half = 2 * len(votes) == len(old) and old[0] in votes
        assert is_anew or 2 * len(votes) > len(old) or is_half, (
            f"{len(votes)} of {len(old)} nodes of round {before.id} went on"
        )

    def _lives(self, round_: Round) -> bool:
        return any(seat.incarnation in self.living for seat in round_.seats)

    living: set[str]
    """The starts of nodes that have not died; the cluster keeps it."""


def _term_of(message: object) -> int | None:
    match message:
        case Lead(term=term) | Go(term=term) | Fenced(term=term):
            return term
        case Host(round=round_) | Propose(round=round_):
            return round_.term
    return None


def _standing(member: Member) -> tuple[object, ...]:
    return (id_of(member.last), id_of(member.pending), id_of(member.at), member.hosting)
