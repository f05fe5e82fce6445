"""Pure: all that a coordinator does of its own accord, given what it knows now."""

from __future__ import annotations

from dataclasses import replace

from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.rendezvous.protocol.coordinator import Wish, close, history, lose, try_claim
from bundlerun.launcher.rendezvous.protocol.messages import (
    NO_ROUND,
    Over,
    Round,
    Seat,
    id_of,
)
from bundlerun.launcher.rendezvous.protocol.next_word import next_word
from bundlerun.launcher.rendezvous.protocol.state import Peer, Phase, Proposal, State, Step
from bundlerun.launcher.rendezvous.protocol.votes import (
    choose_seats,
    has_quorum,
    highest_known,
    is_agreed,
    is_better,
    may_go_on,
    next_term,
)
from bundlerun.launcher.rendezvous.protocol.wishes import Note, Send
from bundlerun.launcher.run_folder.events import EventName


def settle(state: State, now: float) -> tuple[State, list[Wish]]:
    """Does all that is due: ends graces, elects, proposes, ends rounds, tells the nodes.

    Returns:
        The next state and what the outside is to do, in this order.
    """
    decision = _Decision(state, now)
    decision.run()
    return decision.state, decision.wishes


class _Decision:
    """One look at everything; each step replaces the state and adds wishes."""

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.wishes: list[Wish] = []

    def run(self) -> None:
        self._end_graces()
        while True:
            before = self.state
            match before.phase:
                case Phase.GATHERING:
                    self._gather()
                case Phase.ELECTING:
                    self._elect()
                case Phase.ACTIVE:
                    self._lead()
                case Phase.CLOSED:
                    pass
            # Until nothing changes: one step may make another one due.
            if self.state is before:
                break
        self._tell()

    def _note(self, event: EventName, **details: object) -> None:
        self.wishes.append(Note(event=event, details=details))

    # ------------------------------------------------------------------ who leads

    def _end_graces(self) -> None:
        for name, peer in self.state.peers.items():
            broken_at = peer.broken_at
            if broken_at is not None and self.now - broken_at >= self.state.rules.grace_s:
                self.state, notes = lose(self.state, name, "has broken its connection")
                self.wishes += notes

    def _gather(self) -> None:
        state, rules, peers = self.state, self.state.rules, list(self.state.peers.values())
        highest = max(state.term, state.highest_term)
        term = next_term(highest, rules.index, rules.num_candidates, rules.salt)
        _, grounds = history(peers, term)
        # Stands only where these nodes, once they follow, may go on; else it waits for more.
        if peers and may_go_on(state, grounds, peers, self.now):
            self.state = replace(
                state, phase=Phase.ELECTING, term=term, highest_term=term, proposal=None
            )
        elif stuck := self._stuck(grounds):
            self.state, notes = close(state, stuck, is_success=False)
            self.wishes += notes

    def _stuck(self, grounds: tuple[Round, ...]) -> str:
        """Why these nodes can never go on, though nobody is missing; empty where they may."""
        state, peers = self.state, self.state.peers
        seats = [peer.seat for peer in peers.values()]
        for round_ in grounds:
            is_decided = round_.is_fenced and state.rules.has_fence
            is_whole = all(seat.name in peers for seat in round_.seats)
            # All are here, but too many have lost their memory: nobody can come who would help.
            if is_whole and not is_decided and not has_quorum(round_, seats):
                num_kept = sum(map(round_.has, seats))
                if self.now - state.since < state.rules.minority_wait_s:
                    return ""
                return (
                    f"{len(round_.seats) - num_kept} of the {len(round_.seats)} agents of round "
                    f"{round_.number} were started again at once, so that no majority knows how "
                    "far the job is; start all agents again, or give them a fence_dir"
                )
        return ""

    def _elect(self) -> None:
        """Leads once all who are here follow: they accept no round of an earlier term any more."""
        state = self.state
        if state.highest_term > state.term or not state.peers:
            self._step_down("there is a later coordinator" if state.peers else "nobody is here")
        elif len(state.followers) == len(state.peers):
            base, grounds = history(state.followers, state.term)
            if not may_go_on(state, grounds, state.followers, self.now):
                self._step_down("too few nodes of the last round are here")
                return
            reports = [peer.report for peer in state.followers]
            numbers = [round_.number for round_ in (base, *(r.pending for r in reports)) if round_]
            self.state = replace(
                state,
                phase=Phase.ACTIVE,
                since=self.now,
                base=base,
                grounds=grounds,
                # Accepted is not in force: others may have gone on without it.
                in_force=base if any(r.last == base for r in reports) else None,
                over=None,
                over_at=self.now,
                silent=frozenset(),  # those have been waited for
                num_there_at=None,
                # No number is used twice, not even that of a round that was abandoned.
                highest_number=max([state.highest_number, *numbers, *(r.known for r in reports)]),
            )
            self._note("coordinator: active", term=state.term, round=base.number if base else 0)

    def _step_down(self, why: str) -> None:
        state = self.state
        is_new = state.phase is Phase.ACTIVE
        self.state = replace(
            state,
            phase=Phase.GATHERING,
            # A failed election does not begin the wait again.
            since=self.now if is_new else state.since,
            in_force=None,
            proposal=None,
            waits_for=why,
        )
        if is_new:
            self._note("coordinator: steps down", why=why)

    # ------------------------------------------------------------------ rounds

    def _lead(self) -> None:
        state = self.state
        if state.highest_term > state.term:
            # There is a later term: who follows it would refuse every word of this one.
            self._step_down("there is a later coordinator")
        elif state.in_force:
            over = self._end_of(state.in_force)
            if over:
                self.state = replace(state, in_force=None, over=over, over_at=self.now)
                lost = self._lost_unseen(state.in_force)
                self._note(
                    "coordinator: over", round=state.in_force.number, why=over.reason, lost=lost
                )
        elif not may_go_on(state, state.grounds, state.followers, self.now):
            self._tell()  # those who are left learn that their round is over
            self._step_down(self._missing_quorum())
        elif state.base is None and self._knows_more():
            self._step_down("a node that has come may be in an earlier round")
        elif state.proposal:
            self._advance(state.proposal)
        elif self.now >= state.retry_at:
            self._propose()

    def _knows_more(self) -> bool:
        """Whether somebody came after the election who has accepted a round of another term."""
        base, _ = history(self.state.followers, self.state.term)
        return base is not None and base.term != self.state.term

    def _missing_quorum(self) -> str:
        seats = [peer.seat for peer in self.state.followers]
        for round_ in self.state.grounds:
            if not has_quorum(round_, seats):
                here, of = sum(map(round_.has, seats)), len(round_.seats)
                return f"{here} of the {of} nodes of round {round_.number} are here, no majority"
        return "a node knows of an earlier round, whose other nodes are not here"

    def _end_of(self, round_: Round) -> Over | None:
        """Why a round in force is over; None while it is not."""
        state = self.state
        for seat in round_.seats:
            peer = state.peers.get(seat.name)
            if peer is None or peer.seat.incarnation != seat.incarnation:
                if self._is_dead(seat):
                    unseen = "was started again" if peer else "does not come"
                    why = state.lost.get(seat.incarnation, unseen)
                    return _over(round_, EndCause.LOST, f"node {seat.name} is lost, it {why}")
                # Absent, but not known to be dead: it may come back, and the round continues.
                continue
            # Of this round, or of a later one that the fence let others begin.
            is_back = peer.report.is_waiting and id_of(peer.report.last) >= round_.id
            if is_back or peer.report.at not in (NO_ROUND, round_.id):
                return _over(round_, EndCause.ASKS, f"node {seat.name} asks for a new round")
        # A round for a newcomer costs all a restart: only where more ranks are used.
        if is_better(self._choice(), round_.seats, state.rules.bundle_sizes):
            names = {seat.name for seat in round_.seats}
            new = [seat.name for seat in self._choice() if seat.name not in names]
            return _over(round_, EndCause.JOINS, f"node {', '.join(new)} joins")
        return None

    def _lost_unseen(self, round_: Round) -> str:
        """The name of a node that has died while this coordinator did not know it; else empty."""
        state = self.state
        here = {peer.seat.incarnation for peer in state.peers.values()} | state.lost.keys()
        missing = (seat for seat in round_.seats if seat.incarnation not in here)
        return next((seat.name for seat in missing if self._is_dead(seat)), "")

    def _is_dead(self, seat: Seat) -> bool:
        """Whether a node that is not here need not be waited for."""
        state = self.state
        return (
            seat.name in state.peers  # started again
            or seat.incarnation in state.lost
            or seat.candidate in state.gone
            # A new coordinator gives the nodes of the last round one lease to find it.
            or self.now - state.since >= state.rules.lease_s
        )

    def _choice(self) -> tuple[Seat, ...]:
        """The seats of a round of all who are in the one in force or have come for the next."""
        rules, round_ = self.state.rules, self.state.in_force
        order = [
            peer.seat
            for peer in self._in_order()
            if peer.report.is_waiting
            or (round_ and round_.has(peer.seat) and not peer.report.is_done)
        ]
        return choose_seats(
            order,
            min_nodes=rules.min_nodes,
            max_nodes=rules.max_nodes,
            bundle_sizes=rules.bundle_sizes,
        )

    def _in_order(self) -> list[Peer]:
        """Survivors as they sat in the last round, then newcomers as they came."""
        base = self.state.base
        names = [seat.name for seat in base.seats] if base else []
        place = {name: index for index, name in enumerate(names)}
        followers = self.state.followers  # in order of arrival, and the sort is stable
        return sorted(followers, key=lambda peer: place.get(peer.seat.name, len(place)))

    def _propose(self) -> None:
        choice = self._choice()
        if self.state.base is None:
            self._count(choice)
        why = self._missing(choice)
        # Only where it differs: a new state object would make `run` go round for ever.
        if why != self.state.waits_for:
            self.state = replace(self.state, waits_for=why)
        if why:
            self._end_if_done(why)
            return
        state = self.state
        is_fenced = state.rules.has_fence and not any(p.sees_no_fence for p in state.followers)
        number = state.highest_number + 1
        round_ = Round(term=state.term, number=number, seats=choice, is_fenced=is_fenced)
        # Also after a fenced round: another half may have claimed the next number already.
        needs_claim = is_fenced or any(each.is_fenced for each in state.grounds)
        proposal = Proposal(round=round_, step=Step.CLAIM if needs_claim else Step.HOST)
        self.state = replace(state, proposal=proposal, highest_number=number)
        if needs_claim:
            self.wishes.append(try_claim(self.state, proposal))

    def _end_if_done(self, why: str) -> None:
        """Ends the job well where some have finished, and the others cannot go on without them."""
        come = [peer for peer in self.state.peers.values() if peer.report.is_waiting]
        done = [peer.seat.name for peer in self.state.peers.values() if peer.report.is_done]
        if done and come and len(come) + len(done) == len(self.state.peers):
            rest = ", ".join(peer.seat.name for peer in come)
            reason = (
                f"the workers of node {', '.join(done)} have finished, and node {rest} came for "
                f"another round without them ({why})"
            )
            self.state, notes = close(self.state, reason, is_success=True)
            self.wishes += notes

    def _count(self, choice: tuple[Seat, ...]) -> None:
        """Remembers since when enough nodes for the first round are here."""
        since = self.state.num_there_at
        if (since is None) == bool(choice):
            self.state = replace(self.state, num_there_at=self.now if choice else None)

    def _missing(self, choice: tuple[Seat, ...]) -> str:
        """What the next round still waits for; empty when nothing is missing."""
        state, rules, base = self.state, self.state.rules, self.state.base
        # [1] nodes of the last round that may be alive
        for seat in base.seats if base else ():
            if seat.name not in state.peers and not self._is_dead(seat):
                return f"node {seat.name} may come back"
        # [2] nodes that are here and have not stopped their workers
        if base and self.now - state.over_at < rules.stop_wait_s:
            for peer in state.peers.values():
                is_ready = peer.report.is_waiting or peer.report.is_done
                if not is_ready or peer.report.promised != state.term:
                    return f"node {peer.seat.name} stops its workers"
        # [3] enough nodes for a bundle, and among them a quorum
        if not choice:
            return self._too_few()
        if rules.num_candidates > 1 and not all(
            each.is_fenced or has_quorum(each, choice) for each in state.grounds
        ):
            return "the nodes that hold the majority do not make a bundle"
        # [4] more nodes for a first round, for a while
        num_come = sum(peer.report.is_waiting for peer in state.followers)
        # Those who were in a round before come back by themselves or not at all.
        if base or highest_known(state.followers) or num_come >= rules.max_nodes:
            return ""
        assert state.num_there_at is not None
        if self.now - state.num_there_at >= rules.first_wait_s:
            return ""
        return (
            f"{num_come} of at most {rules.max_nodes} nodes are here; the first round waits "
            f"{rules.first_wait_s:g} s for more"
        )

    def _too_few(self) -> str:
        rules = self.state.rules
        come = [peer.seat for peer in self._in_order() if peer.report.is_waiting]
        names = ", ".join(seat.name for seat in come)
        if len(come) < rules.min_nodes:
            return f"{len(come)} of at least {rules.min_nodes} nodes are here ({names})"
        ranks = sum(seat.num_workers for seat in come)
        return f"{ranks} ranks are here ({names}), a bundle needs {min(rules.bundle_sizes)}"

    def _advance(self, proposal: Proposal) -> None:
        state, round_ = self.state, proposal.round
        for seat in round_.seats:
            peer = state.peers.get(seat.name)
            if peer is None or peer.seat.incarnation != seat.incarnation:
                # Not all can accept any more: the next proposal goes without this seat.
                self.state = replace(state, proposal=None)
                self._note(
                    "coordinator: abandoned", round=round_.number, why=f"node {seat.name} is lost"
                )
                return
        if self._is_stale(proposal):
            self.state = replace(state, proposal=None)
            self._note(
                "coordinator: abandoned", round=round_.number, why="it took longer than a lease"
            )
        elif is_agreed(round_, proposal.accepted):
            # [4] In force: the next round needs a quorum of this one, and of no other.
            self.state = replace(
                state, proposal=None, base=round_, grounds=(round_,), in_force=round_
            )
            names = [seat.name for seat in round_.seats]
            self._note("coordinator: round", round=round_.number, term=round_.term, nodes=names)

    def _is_stale(self, proposal: Proposal) -> bool:
        """Whether others may take our claim to the first round for one of an earlier job."""
        is_first = self.state.base is None and proposal.round.is_fenced
        is_claimed = proposal.step is not Step.CLAIM
        return (
            is_first and is_claimed and (self.now - proposal.claimed_at > self.state.rules.lease_s)
        )

    # ------------------------------------------------------------------ what the nodes are told

    def _tell(self) -> None:
        changed: dict[str, Peer] = {}
        for name, peer in self.state.peers.items():
            message = next_word(self.state, peer) if peer.broken_at is None else None
            # Said once; the next report or beat clears `sent`, and what still holds is said again.
            if message is not None and message != peer.sent:
                self.wishes.append(Send(to=name, message=message))
                changed[name] = replace(peer, sent=message)
        if changed:
            self.state = replace(self.state, peers={**self.state.peers, **changed})


def _over(round_: Round, cause: EndCause, reason: str) -> Over:
    return Over(id=round_.id, cause=cause, reason=reason)
