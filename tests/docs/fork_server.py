"""`wavelet` without the seconds of its start: a process that has imported torch forks for every command.

fork_server.py SOCKET                         serves until it is killed
fork_server.py SOCKET FIELD=VALUE... -- ARGUMENTS   is `wavelet ARGUMENTS`; `wavelet train` sets the fields too
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys

PRELOADED = (
    "torch._dynamo",
    "wavelet_memory.plugin",
    "wavelet_quant.decode_benchmark",
    "wavelet_train.plugin",
    "wavelet_train.trainer",
)


def serve(address: str) -> None:
    """Run one command at a time, each in a child that has the client's arguments, directory, environment and files."""
    for module in PRELOADED:
        importlib.import_module(module)
    from wavelet_cli.main import main

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            message, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
            child = os.fork()
            if child == 0:
                server.close()
                connection.close()
                arguments, directory, environment = json.loads(message)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                os.chdir(directory)
                os.environ.clear()
                os.environ.update(environment)
                sys.argv = ["wavelet", *arguments]
                main()
            _, status = os.waitpid(child, 0)
            for file in files:
                os.close(file)
            connection.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
            connection.close()


def ask(address: str, arguments: list[str]) -> int:
    """Have a command run, and return its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        message = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(connection, [message], [0, 1, 2])
        return connection.recv(1)[0]


if __name__ == "__main__":
    _, address, *words = sys.argv
    if not words:
        serve(address)
    fields, arguments = words[: words.index("--")], words[words.index("--") + 1 :]
    if arguments[0] == "train":
        arguments += [word for field in fields for word in ("--set", field)]
    sys.exit(ask(address, arguments))
