"""One process at a time. Locks hold between open files, so a second opening stands in for a second process."""

from __future__ import annotations

import threading

from scanpy_scgpt.disk import alone_with


def test_one_at_a_time(tmp_path):
    events = []

    def wait_for_it():
        with alone_with(tmp_path / "lock", wait=True) as mine:
            events.append(("second", mine))

    with alone_with(tmp_path / "lock", wait=False) as first:
        with alone_with(tmp_path / "lock", wait=False) as second:
            assert (first, second) == (True, False)
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        waiting.join(timeout=0.2)
        assert waiting.is_alive()
        events.append("first")
    waiting.join(timeout=30)
    assert events == ["first", ("second", True)]


def test_a_folder_that_is_gone(tmp_path):
    with alone_with(tmp_path / "gone" / "lock", wait=True) as mine:
        assert mine is False


def test_an_error_lets_go(tmp_path):
    try:
        with alone_with(tmp_path / "lock", wait=False):
            raise KeyError
    except KeyError:
        pass
    with alone_with(tmp_path / "lock", wait=False) as mine:
        assert mine
