"""Files that appear whole or not at all, and the cache."""

import os
import threading

import pytest

from stif_rt import files
from stif_rt.files import cache_folder, read_cache, whole_file, whole_folder, write_cache, write_whole


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    write_whole(tmp_path / "a", b"x")
    with whole_file(tmp_path / "b.png") as temporary:  # a library that replaces the file by one of its own
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    with whole_folder(tmp_path / "c") as folder:
        (folder / "d").write_text("x")
    for name in ("a", "b.png", "c/d"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("name", ["a", "a.gz", ".hidden", "ä" * 120 + ".png", "x" * 255, "a." + "x" * 253])
def test_nothing_appears_before_it_is_complete(tmp_path, name):
    target = tmp_path / name
    with whole_file(target) as temporary:
        temporary.write_text("new")
        assert (temporary.parent, target.exists()) == (tmp_path, False)
        assert temporary.suffix == (target.suffix if 0 < len(target.suffix) < 9 else ".part")
    assert (target.read_text(), names(tmp_path)) == ("new", [name])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def fail(context):
        with context as temporary:
            (temporary / "new" if temporary.is_dir() else temporary).write_text("half")
            raise error

    for context in (whole_file(tmp_path / "file"), whole_folder(tmp_path / "folder", overwrite=True)):
        with pytest.raises(error):
            fail(context)
    assert names(tmp_path) == ["file", "folder"]
    assert ((tmp_path / "file").read_text(), names(tmp_path / "folder")) == ("old", ["old"])


def test_overwriting_must_be_asked_for(tmp_path):
    write_whole(tmp_path / "file", "old", overwrite=False)
    for context in (whole_file(tmp_path / "file", overwrite=False), whole_folder(tmp_path)):
        with pytest.raises(FileExistsError, match="--overwrite"), context:
            pytest.fail("the block must not run")
    assert names(tmp_path) == ["file"]


def test_what_appears_meanwhile_is_kept(tmp_path):
    def late_file():
        with whole_file(tmp_path / "late", overwrite=False) as new:
            new.write_text("mine")
            (tmp_path / "late").write_text("theirs")

    def late_folder():
        with whole_folder(tmp_path / "later") as new:
            (new / "x").touch()
            (tmp_path / "later").mkdir()
            (tmp_path / "later" / "theirs").touch()

    for write in (late_file, late_folder):
        with pytest.raises(FileExistsError, match="meanwhile"):
            write()
    assert names(tmp_path) == ["late", "later"]
    assert ((tmp_path / "late").read_text(), names(tmp_path / "later")) == ("theirs", ["theirs"])
    with whole_folder(tmp_path / "later", overwrite=True) as new:
        (new / "mine").touch()
    assert names(tmp_path / "later") == ["mine"]


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    wrong = {"pipe": "regular", "": "folder", "none/x": "does not exist", "file/x": "file, not a folder"}
    for name, message in (wrong | {"file/none/x": "file, not a folder"}).items():
        with pytest.raises(OSError, match=message):
            write_whole(tmp_path / name, b"x")
    assert names(tmp_path) == ["file", "pipe"]


def test_writers_of_one_target_do_not_disturb_each_other(tmp_path):
    contents = [bytes([n]) * 100_000 for n in range(6)]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "x", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_bytes() in contents
    assert names(tmp_path) == ["x"]


def test_cache_keeps_what_is_whole(tmp_path, caplog):
    path = tmp_path / "new" / "kernel"
    assert read_cache(path) is None
    for content in (b"", b"content"):
        write_cache(path, content)
        assert read_cache(path) == content
    for damage in (b"", path.read_bytes()[:-1], path.read_bytes() + b"x", b"\0" * 100):
        path.write_bytes(damage)
        assert read_cache(path) is None
    assert "damaged" in caplog.text


def test_unwritable_cache_is_one_warning(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    files._warn_not_kept.cache_clear()
    for name in ("a", "b", "c"):
        write_cache(tmp_path / "file" / "cache" / name, b"x")
        assert read_cache(tmp_path / "file" / "cache" / name) is None
    assert (len(caplog.records), "XDG_CACHE_HOME" in caplog.text) == (1, True)
    for _ in range(2):
        write_cache(None, b"x")
    assert (len(caplog.records), read_cache(None)) == (2, None)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stif-rt"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for relative in ("", "relative"):  # which the specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_folder() == tmp_path / "home" / ".cache" / "stif-rt"
    monkeypatch.setattr(files.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder() is None
