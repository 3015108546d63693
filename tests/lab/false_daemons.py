"""Daemons that are no help to the client of a hand-over, each at a socket of its own.

Runs in the lab, started by its path: DIRECTORY NAME... A client's message is
taken by those that say so, and delivered by none. Standard library only.
"""

import os
import socket
import sys
import threading
import time


def silent(client: socket.socket) -> None:
    """Like one that was stopped (SIGSTOP)."""
    time.sleep(60)


def closes(client: socket.socket) -> None:
    """Like one that ends."""


def refuses(client: socket.socket) -> None:
    """Like one that is full, or of another version."""
    client.recv(65536)
    client.sendall(b"-full\n")


def other(client: socket.socket) -> None:
    """Of another protocol."""
    client.sendall(b"220 mail.lab.test ESMTP\r\n")
    client.recv(65536)


def dies(client: socket.socket) -> None:
    """Takes the message, and ends."""
    take(client, 60)


def wrong(client: socket.socket) -> None:
    """Takes the message, and gives an answer that contradicts itself."""
    take(client, 60)
    client.sendall(b"=0 5.0.0 delivered, and refused\n")
    client.recv(65536)


def keeps(client: socket.socket) -> None:
    """Takes the message, and never says what became of it."""
    message = take(client, 2)
    time.sleep(60)
    os.close(message)


def lies(client: socket.socket) -> None:
    """Takes the message, and says that it is delivered."""
    take(client, 60)
    client.sendall(b"=0 2.0.0 Ok\n")
    client.recv(65536)


def take(client: socket.socket, seconds: int) -> int:
    """Accept the request, and return the descriptor of the message."""
    client.recv(65536)
    client.sendall(b"+%d\n" % seconds)
    _, descriptors, *_ = socket.recv_fds(client, 16, 1)
    return descriptors[0]


DAEMONS = {
    one.__name__: one
    for one in (silent, closes, refuses, other, dies, wrong, keeps, lies)
}


def main(directory: str, names: list[str]) -> None:
    """Listen for ever."""
    for name in names:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"{directory}/{name}")
        listening.listen()
        threading.Thread(target=listen, args=(name, listening)).start()


def listen(name: str, listening: socket.socket) -> None:
    """Serve each client in a thread."""
    while True:
        client, _ = listening.accept()
        threading.Thread(target=serve, args=(name, client)).start()


def serve(name: str, client: socket.socket) -> None:
    """Do to *client* what the name says."""
    with client:
        DAEMONS[name](client)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
