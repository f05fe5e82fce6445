"""A cluster without sockets: the pure machines, a network that a test breaks, a clock it moves."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from bundlerun.launcher.rendezvous.protocol import coordinator, decide, events, member
from bundlerun.launcher.rendezvous.protocol.messages import (
    Close,
    Over,
    Pulse,
    Round,
    RoundId,
    Seat,
)
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.state import Phase, Rules, State
from bundlerun.launcher.rendezvous.protocol.votes import best_candidate
from bundlerun.launcher.rendezvous.protocol.wishes import Note, Send
from tests.unit.launcher.rendezvous.protocol.ledger import Ledger
from tests.unit.launcher.rendezvous.protocol.nodes import Link, Node
from tests.unit.launcher.rendezvous.protocol.shared_folder import SharedFolder

STEP_S = 0.1


class Cluster:
    """Nodes n0, n1, ... of which the first `num_candidates` keep an endpoint."""

    def __init__(self, num_nodes: int, rules: Rules) -> None:
        self.now = 0.0
        self.rules = rules
        self.nodes: dict[int, Node] = {}
        self.side = dict.fromkeys(range(num_nodes), 0)
        self.deaf: set[tuple[int, int]] = set()
        """(from, to): nothing passes this way, the other way it does."""
        self.ledger = Ledger(rules.num_candidates)
        self.ledger.living = set()
        self.heard: dict[tuple[int, str], float] = {}
        self.heard_down: dict[int, float] = {}
        self.rounds: dict[RoundId, tuple[Round, RoundId | None]] = {}
        self.commits: list[RoundId] = []
        self.notes: list[tuple[float, int, str, dict[str, object]]] = []
        self.folder = SharedFolder(rules.lease_s)
        self.agreed: set[RoundId] = set()
        """Rounds into which all workers have agreed to go on."""
        self.starts = 0
        self.pause_ms = 0
        """What nodes say that they have lost by their last new round."""
        self.num_messages: dict[int, int] = defaultdict(int)
        for index in range(num_nodes):
            self.start(index)

    # ---------------------------------------------------------------- life and death

    def start(self, index: int, num_workers: int = 1) -> None:
        self.starts += 1
        k = self.rules.num_candidates
        seat = Seat(
            name=f"n{index}",
            incarnation=f"i{self.starts}",
            address=f"10.0.0.{index}",
            num_workers=num_workers,
            candidate=index if index < k else -1,
        )
        me = Member(seat=seat, num_candidates=k, lease_s=self.rules.lease_s, guided_at=self.now)
        # Far apart like the random ones of real coordinators, so that no two terms are the same.
        rules = replace(self.rules, index=index, salt=self.starts * 7_368_787 % (1 << 24))
        state = State(rules=rules, since=self.now) if index < k else None
        self.nodes[index] = Node(member=me, state=state)
        self.ledger.living.add(seat.incarnation)
        self.want(index)

    def kill(self, index: int) -> None:
        self.cut(index)
        dead = self.nodes.pop(index)
        self.ledger.living.discard(dead.member.seat.incarnation)
        if dead.state:
            for other, node in self.nodes.items():
                if node.link and node.link.candidate == index:
                    self.cut(other)

    def freeze(self, index: int) -> None:
        node = self.nodes[index]
        node.frozen_at = self.now if node.frozen_at is None else node.frozen_at

    def thaw(self, index: int, sees_pause: bool = False) -> None:
        """A stopped node runs on; it looks at the fence before anything else.

        Args:
            sees_pause: it takes the pause for its own, and not for the silence of others.
        """
        node = self.nodes[index]
        pause_s = self.now - node.frozen_at if node.frozen_at is not None else 0.0
        was_frozen, node.frozen_at = node.is_frozen, None
        if sees_pause:
            if node.link:
                node.member = member.forgive(node.member, pause_s)
            self._act(index, member.tick(node.member, self.now, where="here"))
            self.heard_down[index] = self.heard_down.get(index, self.now) + pause_s
            for key in [key for key in self.heard if key[0] == index]:
                self.heard[key] += pause_s
        if was_frozen and node.state and self.rules.has_fence:
            if node.state.in_force and node.state.phase is Phase.ACTIVE:
                self.folder.pulse_at = self.now
            self._look(index)
            while node.link and node.link.candidate == index and node.link.down:
                self.deliver(index, False)

    def want(self, index: int) -> None:
        node = self.nodes[index]
        node.workers_in = None
        if not node.member.is_waiting:
            self._act(index, member.want(node.member))

    def agree_to_move(self) -> None:
        """All workers of a round and of the one that they go on in find each other at work."""
        for node in self.nodes.values():
            at = node.member.at
            if not node.member.is_moving or at is None or node.member.must_leave:
                continue
            found = {n.member.seat.incarnation: n for n in self.nodes.values()}
            seats = [found.get(seat.incarnation) for seat in at.seats]
            if all(n and n.workers_in in (at.before, at.id) and not n.is_frozen for n in seats):
                self.agreed.add(at.id)

    def move(self, index: int) -> None:
        """The workers of a node go on in its round, as all have agreed."""
        node = self.nodes[index]
        at = node.member.at
        if at is None or at.id not in self.agreed or node.is_frozen or node.member.must_leave:
            return
        node.workers_in = at.id
        self._act(index, member.moved(node.member, at))

    def is_reachable(self, a: int, b: int) -> bool:
        return self.passes(a, b) and self.passes(b, a)

    def passes(self, a: int, b: int) -> bool:
        """True where what `a` sends comes to `b`; a node always hears itself."""
        return a == b or (self.side[a] == self.side[b] and (a, b) not in self.deaf)

    def heal(self) -> None:
        self.side = dict.fromkeys(self.side, 0)
        self.deaf.clear()

    # ---------------------------------------------------------------- the network

    def cut(self, index: int) -> None:
        node = self.nodes[index]
        if node.link is None:
            return
        server = self.nodes.get(node.link.candidate)
        if server and server.state and node.link.is_known:
            self._take(node.link.candidate, events.Broken(name=node.member.seat.name))
        node.link = None
        node.member = member.lost(node.member)

    def connect(self, index: int) -> None:
        node = self.nodes[index]
        found = {}
        gone = []
        for c in range(self.rules.num_candidates):
            if c not in self.nodes:
                if self.is_reachable(index, c):
                    gone.append(c)
            elif self.is_reachable(index, c) and not self.nodes[c].is_frozen:
                state = self.nodes[c].state
                assert state is not None
                found[c] = state.status
        last_term = node.member.last.term if node.member.last else -1
        best = best_candidate(found, last_term, self.rules.num_candidates)
        if best is None or (node.link and node.link.candidate == best):
            return
        self.cut(index)
        node.link = Link(candidate=best)
        self.heard_down[index] = self.now
        node.member = replace(node.member, gone=tuple(gone))
        self._act(index, member.report(node.member))

    def deliver(self, index: int, is_up: bool, place: int = 0, keep: bool = False) -> None:
        """Hands over one message; `keep` leaves a copy, which comes again."""
        node = self.nodes[index]
        if node.link is None or not self.passes_link(index, is_up):
            return
        queue = node.link.up if is_up else node.link.down
        server = self.nodes[node.link.candidate]
        if not queue or (server if is_up else node).is_frozen:
            return
        if is_up and not node.link.is_known:
            place, keep = 0, False  # the first report opens the connection
        place %= len(queue)
        message = queue[place] if keep else queue.pop(place)
        if is_up:
            self._deliver_up(node, message)
        else:
            self.heard_down[index] = self.now
            if not isinstance(message, (Pulse, Over)):
                node.heard = [*node.heard[-9:], message]
            self._deliver_down(index, message)

    def _deliver_down(self, index: int, message: object) -> None:
        before = self.nodes[index].member
        after, wishes = member.receive(before, message, self.now)  # type: ignore[arg-type]
        self.ledger.heard(before, message, after, wishes)
        self._act(index, (after, wishes))

    def say_again(self, index: int, place: int) -> None:
        """A node hears once more what some coordinator told it before."""
        heard = self.nodes[index].heard
        if heard:
            self._deliver_down(index, heard[place % len(heard)])

    def moving(self) -> list[tuple[int, bool]]:
        """Where something is on its way and can arrive: node, and whether it goes up."""
        found = []
        for index, node in self.nodes.items():
            if node.link is None:
                continue
            server = self.nodes[node.link.candidate]
            for is_up, queue in ((True, node.link.up), (False, node.link.down)):
                is_awake = not (server if is_up else node).is_frozen
                if queue and is_awake and self.passes_link(index, is_up):
                    found.append((index, is_up))
        return found

    def passes_link(self, index: int, is_up: bool) -> bool:
        link = self.nodes[index].link
        assert link is not None
        return self.passes(index, link.candidate) if is_up else self.passes(link.candidate, index)

    def _deliver_up(self, node: Node, message: object) -> None:
        assert node.link is not None
        candidate, name = node.link.candidate, node.member.seat.name
        self.heard[candidate, name] = self.now
        if not node.link.is_known:
            node.link.is_known = True
            self._take(candidate, events.Arrived(report=message))
            self.heard[candidate, name] = self.now
        else:
            self._take(candidate, events.Received(name=name, message=message))

    # ---------------------------------------------------------------- time

    def tick(self, seconds: float = STEP_S) -> None:
        """Time goes on: beats, pulses, leases, everybody looks at what is due."""
        self.now += seconds
        for index, node in list(self.nodes.items()):
            if node.is_frozen:
                continue
            if node.state:
                self._tick_server(index, node)
            if node.link and self.now - self.heard_down[index] > self.rules.lease_s:
                self.cut(index)
            if node.link and node.link.is_known:
                self._act(index, member.beat(node.member))
            self._act(index, member.tick(node.member, self.now, where="here"))
            if self.rules.has_fence and self.folder.over and node.member.may_miss_the_end:
                self._act(index, member.receive(node.member, self.folder.over, self.now))
            is_lonely = node.link is None or not node.member.at
            if is_lonely:
                self.connect(index)

    def _tick_server(self, index: int, node: Node) -> None:
        assert node.state is not None
        if node.state.in_force:
            self.folder.pulse_at = self.now
        for name in list(node.state.peers):
            if self.now - self.heard.get((index, name), self.now) > self.rules.lease_s:
                self._take(index, events.Expired(name=name))
                client = self._client(index, name)
                if client is not None:
                    self.cut(client)
        for peer in self.nodes.values():
            if peer.link and peer.link.candidate == index and peer.link.is_known:
                peer.link.down.append(node.state.pulse)
        self._settle(index)

    def _client(self, candidate: int, name: str) -> int | None:
        for index, node in self.nodes.items():
            if node.member.seat.name == name and node.link and node.link.is_known:
                return index if node.link.candidate == candidate else None
        return None

    def run(self, seconds: float) -> None:
        """A healthy while: all that is on its way arrives, agents do as they are told."""
        end = self.now + seconds
        while self.now < end:
            self.flush()
            for index, node in list(self.nodes.items()):
                if node.member.must_leave and not node.member.closed and not node.is_frozen:
                    self.want(index)
            self.agree_to_move()
            for index in list(self.nodes):
                self.move(index)
            self.flush()
            self.tick()

    def flush(self) -> None:
        for _ in range(200):
            busy = False
            for index, node in list(self.nodes.items()):
                for is_up in (True, False):
                    queue = node.link and (node.link.up if is_up else node.link.down)
                    if queue and node.link and self.passes_link(index, is_up):
                        before = len(queue)
                        self.deliver(index, is_up)
                        busy = busy or len(queue) != before
            if not busy:
                return
        raise AssertionError("messages without end")

    # ---------------------------------------------------------------- wishes

    def _take(self, candidate: int, event: coordinator.Event) -> None:
        node = self.nodes[candidate]
        assert node.state is not None
        node.state, wishes = coordinator.receive(node.state, event, self.now)
        self._grant(candidate, wishes)
        self._settle(candidate)

    def _settle(self, candidate: int) -> None:
        node = self.nodes[candidate]
        assert node.state is not None
        before = node.state
        node.state, wishes = decide.settle(node.state, self.now)
        proposal = node.state.proposal
        if proposal:
            base = node.state.base.id if node.state.base else None
            self.rounds[proposal.round.id] = (proposal.round, base)
            if node.state.base:
                self.rounds.setdefault(node.state.base.id, (node.state.base, None))
        if node.state.in_force is not None and node.state.in_force is not before.in_force:
            self.commits.append(node.state.in_force.id)
            self.folder.pulse_at = self.now
            if before.proposal and before.proposal.round.id == node.state.in_force.id:
                self.ledger.committed(node.state.in_force)
        self._grant(candidate, wishes)
        begins = node.state.phase is Phase.ACTIVE and before.phase is not Phase.ACTIVE
        if begins and node.state.in_force and self.rules.has_fence:
            self._look(candidate)

    def _look(self, candidate: int) -> None:
        found = events.Looked(claims=tuple(self.folder.claims), over=self.folder.over)
        self._take(candidate, found)

    def close(self, index: int) -> None:
        """The job ends well, at this coordinator."""
        name = self.nodes[index].member.seat.name
        self._take(
            index,
            events.Received(name=name, message=Close(reason="all done", is_success=True)),
        )
        state = self.nodes[index].state
        assert state is not None
        self.folder.ends(state.closed)

    def _grant(self, candidate: int, wishes: list[coordinator.Wish]) -> None:
        for wish in wishes:
            match wish:
                case Send(to=name, message=message):
                    client = self._client(candidate, name)
                    if client is not None:
                        link = self.nodes[client].link
                        assert link is not None
                        link.down.append(message)
                        self.num_messages[candidate] += 1
                case coordinator.TryClaim():
                    self._take(candidate, self.folder.claim(wish, self.now))
                case Note(event=event, details=details):
                    self.notes.append((self.now, candidate, event, dict(details)))

    def _act(self, index: int, result: member.Answer) -> None:
        node = self.nodes[index]
        node.member, wishes = result
        for wish in wishes:
            self.ledger.wished(node.member, wish)
            match wish:
                case Send(message=message):
                    if node.link:
                        node.link.up.append(message)
                case member.OpenStore(round=round_):
                    self._act(index, member.opened(node.member, round_, 4000))
                case member.LookForClaim(round=round_):
                    sees = self.folder.has(round_.id)
                    self._act(index, member.looked(node.member, round_, sees))
                case member.Enter(round=round_):
                    self._enter(node, round_)
                    if self.pause_ms and len(node.entered) > 1:
                        self._act(index, member.paused(node.member, self.pause_ms))

    def _enter(self, node: Node, round_: Round) -> None:
        node.entered.append(round_)
        before = self.rounds[round_.before][0] if round_.before else None
        if before is not None and before.has(node.member.seat):
            # The others' workers wait for these, and not for new ones.
            assert node.workers_in == round_.before, "new workers, where others go on"
        else:
            node.workers_in = round_.id

    # ---------------------------------------------------------------- what a test asks

    def complete_rounds(self) -> set[RoundId]:
        """Rounds that can make steps right now: the workers of every seat live and are in it."""
        found = {node.workers_in for node in self.nodes.values() if node.workers_in}
        return {
            id_
            for id_ in found
            if all(self._is_in(seat, id_) for seat in self.rounds[id_][0].seats)
        }

    def can_work(self, id_: RoundId) -> bool:
        """Whether all workers of a round are in it, also where their agents are to end them."""
        here = {n.member.seat.incarnation: n.workers_in for n in self.nodes.values()}
        return all(here.get(seat.incarnation) == id_ for seat in self.rounds[id_][0].seats)

    def _is_in(self, seat: Seat, id_: RoundId) -> bool:
        return any(
            node.member.seat.incarnation == seat.incarnation
            and not node.member.must_leave
            and not node.is_frozen
            and node.member.at is not None
            and node.workers_in == id_
            for node in self.nodes.values()
        )

    def leaders(self) -> list[int]:
        return [i for i, n in self.nodes.items() if n.state and n.state.phase is Phase.ACTIVE]

    def current(self) -> Round:
        """The one round that is complete."""
        complete = self.complete_rounds()
        assert len(complete) == 1, f"{len(complete)} rounds are complete"
        (id_,) = complete
        return self.rounds[id_][0]
