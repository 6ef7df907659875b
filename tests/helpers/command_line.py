"""The command line as tests call it."""

import sys
from pathlib import Path

import pytest

from stif_rt import cli
from stif_rt.cli import terminal
from stif_rt.video.reader import Frame, Reader, open_reader


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of the command line."""
    monkeypatch.setattr("sys.argv", ["stif-rt", *map(str, arguments)])
    monkeypatch.setattr(terminal, "leave", lambda status: None)  # it would end the tests too
    with pytest.raises(SystemExit) as exit_:
        sys.exit(cli.main())
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, " ".join(captured.err.split())


def read(path: Path) -> tuple[Reader, list[Frame]]:
    reader = open_reader(path)
    frames = list(reader)
    reader.close()
    return reader, frames
