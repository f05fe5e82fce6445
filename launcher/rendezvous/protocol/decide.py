"""Pure: all that a coordinator does of its own accord, given what it knows now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.rendezvous.protocol.coordinator import Wish, close, history, lose, try_claim
from bundlerun.launcher.rendezvous.protocol.growth import counted, held_back, worth
from bundlerun.launcher.rendezvous.protocol.hand_over import ended_before, goes_on, is_settled
from bundlerun.launcher.rendezvous.protocol.messages import (
    NO_ROUND,
    Over,
    Round,
    RoundId,
    Seat,
    id_of,
)
from bundlerun.launcher.rendezvous.protocol.missing import in_order, is_dead, missing
from bundlerun.launcher.rendezvous.protocol.next_word import next_word
from bundlerun.launcher.rendezvous.protocol.state import Peer, Phase, Proposal, State, Step
from bundlerun.launcher.rendezvous.protocol.votes import (
    choose_seats,
    has_quorum,
    is_agreed,
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
                began_at=self.now,
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
            ended = ended_before(state, state.in_force) if over else ""
            if ended:
                self.state, notes = close(state, ended, is_success=True)
                self.wishes += notes
            elif over:
                self._end(state.in_force, over)
            elif state.proposal:
                self._advance(state.proposal)
            else:
                self._take_in(state.in_force)
        elif not may_go_on(state, state.grounds, state.followers, self.now):
            self._tell()  # those who are left learn that their round is over
            self._step_down(self._missing_quorum())
        elif state.base is None and self._knows_more():
            self._step_down("a node that has come may be in an earlier round")
        elif state.proposal:
            self._advance(state.proposal)
        elif self.now >= state.retry_at:
            self._propose()

    def _end(self, round_: Round, over: Over) -> None:
        self.state = replace(self.state, in_force=None, over=over, over_at=self.now, proposal=None)
        lost = self._lost_unseen(round_)
        self._note("coordinator: over", round=round_.number, why=over.reason, lost=lost)

    def _take_in(self, round_: Round) -> None:
        """Makes the next round where nodes have come that make use of more ranks."""
        choice = self._choice()
        held = held_back(self.state, round_, choice, self.now) if self._pays(choice, round_) else {}
        self._tell_held(held)
        if held:
            choice = self._choice(without=held)
        if not self._pays(choice, round_):
            return
        new = choice[len(round_.seats) :]
        if not goes_on(self.state, round_, choice):
            # All ranks begin anew in it.
            names = {seat.name for seat in round_.seats}
            joined = ", ".join(seat.name for seat in choice if seat.name not in names)
            self._end(round_, _over(round_, EndCause.JOINS, f"node {joined} joins"))
        # One after the other: who is on the way into this round is not asked into the next.
        elif is_settled(self.state, round_) and self.now >= self.state.retry_at:
            self._note(
                "coordinator: hands over",
                round=round_.number,
                nodes=[seat.name for seat in new],
            )
            self._begin(choice, before=round_.id)

    def _pays(self, choice: tuple[Seat, ...], round_: Round) -> bool:
        """Whether a round of `choice` does more than the one in force."""
        now, was = worth(self.state.rules, choice, round_.seats)
        return now > was

    def _tell_held(self, held: Mapping[str, float]) -> None:
        new = held.keys() - self.state.held
        if new:
            names = ", ".join(sorted(new))
            wait_s = max(held[name] for name in new)
            self._note(
                "coordinator: holds back",
                nodes=sorted(new),
                why=f"node {names} came and went, sooner than a new round pays; it is taken in "
                f"once it has been here for {wait_s:.0f} s more",
            )
        if held.keys() != self.state.held:
            self.state = replace(self.state, held=frozenset(held))

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
                if is_dead(self.state, seat, self.now):
                    unseen = "was started again" if peer else "does not come"
                    why = state.lost.get(seat.incarnation, unseen)
                    return _over(round_, EndCause.LOST, f"node {seat.name} is lost, it {why}")
                # Absent, but not known to be dead: it may come back, and the round continues.
                continue
            # Of this round, or of a later one that the fence let others begin.
            last = id_of(peer.report.last)
            is_back = peer.report.is_waiting and (last >= round_.id or last == round_.before)
            if is_back or peer.report.at not in (NO_ROUND, round_.id, round_.before):
                return _over(round_, EndCause.ASKS, f"node {seat.name} asks for a new round")
        takes_long = self.now - state.began_at > state.rules.move_wait_s
        if round_.before and takes_long and not is_settled(state, round_):
            return _over(
                round_,
                EndCause.JOINS,
                f"the hand-over took longer than {state.rules.move_wait_s:g} s",
            )
        return None

    def _lost_unseen(self, round_: Round) -> str:
        """The name of a node that has died while this coordinator did not know it; else empty."""
        state = self.state
        here = {peer.seat.incarnation for peer in state.peers.values()} | state.lost.keys()
        missing = (seat for seat in round_.seats if seat.incarnation not in here)
        return next((seat.name for seat in missing if is_dead(self.state, seat, self.now)), "")

    def _choice(self, without: Collection[str] = ()) -> tuple[Seat, ...]:
        """The seats of a round of all who are in the one in force or have come for the next.

        Args:
            without: names of those who have come that wait.
        """
        rules, round_ = self.state.rules, self.state.in_force
        order = [
            peer.seat
            for peer in in_order(self.state)
            if (peer.report.is_waiting and peer.seat.name not in without)
            or (round_ and round_.has(peer.seat) and not peer.report.is_done)
        ]
        return choose_seats(
            order,
            min_nodes=rules.min_nodes,
            max_nodes=rules.max_nodes,
            bundle_sizes=rules.bundle_sizes,
        )

    def _propose(self) -> None:
        choice = self._choice()
        if self.state.base is None:
            self._count(choice)
        why = missing(self.state, choice, self.now)
        # Only where it differs: a new state object would make `run` go round for ever.
        if why != self.state.waits_for:
            self.state = replace(self.state, waits_for=why)
        if why:
            self._end_if_done(why)
            return
        self._begin(choice)

    def _begin(self, choice: tuple[Seat, ...], before: RoundId = ()) -> None:
        """The first step of a proposal; `before`: see `Round`."""
        state = self.state
        is_fenced = state.rules.has_fence and not any(p.sees_no_fence for p in state.followers)
        number = state.highest_number + 1
        round_ = Round(
            term=state.term, number=number, seats=choice, is_fenced=is_fenced, before=before
        )
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
                state,
                proposal=None,
                base=round_,
                grounds=(round_,),
                in_force=round_,
                began_at=self.now,
                stays=counted(state, round_, self.now),
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
