"""Ports. What needs a running Serve is part of the one real service of `test_service.py`."""

import socket

from graftline.stages.serve.deploy import free_port, is_free, last_line


def test_a_port_somebody_listens_on_is_not_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


def test_nor_one_that_is_shared():
    """Ray's proxies listen with SO_REUSEPORT, and a second one would get a part of the first one's requests."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free("127.0.0.1", listener.getsockname()[1])


def test_a_free_port_is_free():
    assert is_free("127.0.0.1", free_port())


def test_of_a_traceback_the_last_line_is_told():
    message = "Replica failed.\nTraceback:\n  File x\ngraftline.stages.errors.EngineFailed: model: has no weights\n\n"
    assert last_line(message) == "EngineFailed: model: has no weights"
    assert last_line("") == "no reason was given"
