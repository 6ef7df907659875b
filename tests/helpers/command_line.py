"""The command line as tests call it."""

import sys

import pytest

from stif_rt import cli
from stif_rt.video.reader import open_reader


def call(monkeypatch, capsys, *arguments):
    """(exit status, standard output, standard error) of the command line."""
    monkeypatch.setattr("sys.argv", ["stif-rt", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        sys.exit(cli.main())
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, " ".join(captured.err.split())


def read(path):
    reader = open_reader(path)
    frames = list(reader)
    reader.close()
    return reader, frames
