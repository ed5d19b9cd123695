"""Links to other machines: where one is cut without a word, both ends learn of it within a stated time.

A cable that is pulled, a node that loses power or a switch that drops all packets sends no reset. The kernel then tries
for some 940 s to deliver what was sent, and waits for ever where it only listens. It does better where it is asked to:
it probes connections that are silent, and gives up those that do not answer, under whatever library opened them.
"""

from __future__ import annotations

import os
import socket

#: Seconds that the other end's machine may be silent. Its kernel answers, however busy the process there is.
SILENCE = 120
#: Probes within that time, the first behind half of it.
PROBES = 4


def bound_silence(seconds: int = SILENCE) -> int:
    """Have the kernel give up every TCP connection that this process has now once its other end was silent for so many
    seconds: who waits on it meets an error then. Returns how many there are."""
    bound = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            # Not a socket, or closed meanwhile.
            continue
        with connection:
            bound += _bound(connection, seconds)
    return bound


def _bound(connection: socket.socket, seconds: int) -> bool:
    """Whether it is a TCP connection; it is bound then."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return False
    try:
        connection.getpeername()
    except OSError:
        # It listens.
        return False
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, max(1, seconds // 2)),
        (socket.TCP_KEEPINTVL, max(1, seconds // 2 // PROBES)),
        (socket.TCP_KEEPCNT, PROBES),
        # Of what was sent and not acknowledged, where no probes are sent; milliseconds.
        (socket.TCP_USER_TIMEOUT, seconds * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return True
