"""Where one node can be reached while it is examined: at the port of the list, and at a free one.

Both matter: the rendezvous has a port that is known, the stores of rounds and the links of ranks
take free ones, which a firewall may not let through. Datagrams only say that packets arrive.
"""

from __future__ import annotations

import hmac
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from bundlerun.launcher.doctor.peers.measure import receive
from bundlerun.launcher.doctor.peers.wire import ADMIT_S, Link, Secret, Unreached, Words, admit

MOST_CONNECTIONS = 256
_POLL_S = 0.2

Serve = Callable[[Link, Words], None]
"""Is given a connection that is proven, and its first words; closes it by returning."""


class Door:
    """Listens inside a `with`; each connection has a thread.

    Args:
        address: at which peers reach this node; only there is listened.
        port: the one that all know; 0 takes a free one.
        secret: see `Secret`.
        serve: what is done with those who do not come to measure.

    Raises:
        OSError: the port is taken, or the address is not of this node.
    """

    def __init__(self, address: str, port: int, secret: Secret, serve: Serve) -> None:
        self._secret, self._serve = secret, serve
        self._is_over = threading.Event()
        self._room = threading.Semaphore(MOST_CONNECTIONS)
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._sockets: list[socket.socket] = []
        self._links: set[Link] = set()
        self._heard: set[int] = set()
        try:
            self.port = self._listen(address, port)
            self.free_port = self._listen(address, 0)
            self._datagrams = socket.socket(self._family, socket.SOCK_DGRAM)
            self._sockets.append(self._datagrams)
            self._datagrams.bind((address, self.port))
        except OSError:
            self._close_sockets()
            raise
        self._datagrams.settimeout(_POLL_S)

    def _listen(self, address: str, port: int) -> int:
        sock = socket.socket(self._family)
        self._sockets.append(sock)
        # Connections of an earlier examination that linger do not count as taken.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(1024)
        sock.settimeout(_POLL_S)
        return int(sock.getsockname()[1])

    def _start(self, work: Callable[..., None], *args: object) -> None:
        threading.Thread(target=work, args=args, name="bundlerun-doctor", daemon=True).start()

    def _accept(self, sock: socket.socket) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = sock.accept()
            except TimeoutError:
                continue
            except OSError:  # closed
                return
            if self._room.acquire(blocking=False):
                self._start(self._welcome, connection)
            else:
                connection.close()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(ADMIT_S)
            link = admit(connection, self._secret)
            self._links.add(link)
            hello = link.read(ADMIT_S)
            if hello.get("hello") == "measure":
                receive(link, float(hello.get("seconds", 0.0)))
            else:
                self._serve(link, hello)
            self._links.discard(link)
        except (Unreached, OSError, ValueError, TypeError):
            pass  # who is there tells its own side of it
        finally:
            connection.close()
            self._room.release()

    # ------------------------------------------------------------------ datagrams

    def call(self, index: int, address: str, port: int) -> None:
        """Sends a datagram that says who this is; nobody is told whether it arrives."""
        words = {"from": index, "mac": self._secret.proof("datagram", str(index))}
        with suppress(OSError):
            self._datagrams.sendto(json.dumps(words).encode(), (address, port))

    @property
    def heard(self) -> frozenset[int]:
        """Indices of the nodes whose datagrams have come."""
        return frozenset(self._heard)

    def _hear(self) -> None:
        while not self._is_over.is_set():
            try:
                words = json.loads(self._datagrams.recv(4096))
                index, mac = int(words["from"]), str(words["mac"])
            except TimeoutError:
                continue
            except (ValueError, KeyError, TypeError):  # a stranger's
                continue
            except OSError:  # closed; or what came back for a datagram that nobody took
                continue
            if mac.isascii() and hmac.compare_digest(
                mac, self._secret.proof("datagram", str(index))
            ):
                self._heard.add(index)

    # ------------------------------------------------------------------ the end

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Self:
        for sock in self._sockets[:2]:
            self._start(self._accept, sock)
        self._start(self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._close_sockets()
        for link in list(self._links):
            link.close()
