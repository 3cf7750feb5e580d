"""The number of a process, its device, and what a terminal cannot show."""

import pytest

from mimetic_min import machine


def test_alone_without_rank_and_world_size(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert machine.processes() == (0, 1)


@pytest.mark.parametrize(
    "rank, world_size",
    [
        ("", "2"),
        ("0", ""),
        ("one", "2"),
        ("1", "two"),
        ("1.0", "2"),
        ("-1", "2"),
        ("3", "2"),
        ("0", "0"),
        ("0", "-2"),
        ("0", None),
        (None, "2"),
    ],
)
def test_a_wrong_rank_or_world_size_is_named(rank, world_size, monkeypatch):
    for name, value in {"RANK": rank, "WORLD_SIZE": world_size}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"RANK is {rank!r} and WORLD_SIZE is {world_size!r}$"):
        machine.processes()


@pytest.mark.parametrize("name", ["tpu", "cuda:99", ""])
def test_a_device_that_is_missing_is_named(name):
    with pytest.raises(ValueError, match=f"torch finds no device {name}"):
        machine.use_device(name)


def test_ctrl_c_ends_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop, machine.console():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().out == "\nStopped. The same command resumes.\n"
