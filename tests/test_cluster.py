"""Renders on a cluster: what becomes of lost workers, on a stand-in for Ray; and the same on Ray itself."""

import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from fractions import Fraction
from types import SimpleNamespace

import pytest
from helpers.command_line import call, read
from helpers.videos import picture, same_pictures, write_images, write_video

from stif_rt.model.checkpoints import save_model
from stif_rt.video import cluster
from stif_rt.video.job import make_job
from stif_rt.video.options import Cancellation, Cancelled, RenderOptions
from stif_rt.video.run import Rendered, render_video
from stif_rt.video.workspace import Busy, workspace_path

SIZE = (36, 64)
OPTIONS = {"scale": 1.5, "time_scale": "3", "segment_frames": 4}
GIVEN = ["--scale", 1.5, "--time-scale", 3, "--segment-frames", 4, "--weights", "w.safetensors"]
MACHINE = {"device": "cpu", "dtype": "auto", "kernels": "auto", "encoder": "auto", "max_memory": None}


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class LostError(Exception):
    """What a worker's method raises here to stand for the end of its process."""


class Threads:
    """A stand-in for Ray: each worker is an object, whose calls run in threads of its own."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, cores=2):
        self.cores = cores
        self.killed = []

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(self.cores)}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, worker):
        def make(*arguments):
            item, threads = worker(*arguments), ThreadPoolExecutor(4)

            def method(name):
                return SimpleNamespace(remote=lambda *values: threads.submit(getattr(item, name), *values))

            return SimpleNamespace(**{name: method(name) for name in ("about", "frames", "render", "stop")})

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=make))

    def wait(self, calls, num_returns=1, timeout=None):
        if num_returns == 1:
            wait(calls, timeout, "FIRST_COMPLETED")
        else:
            wait(calls, timeout)
        return [call for call in calls if call.done()], [call for call in calls if not call.done()]

    def get(self, call):
        try:
            return call.result()
        except LostError as error:
            raise RayError(str(error)) from error
        except Exception as error:
            raise RayTaskError(error) from error

    def kill(self, actor):
        self.killed.append(actor)


@pytest.fixture
def folder(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "TICK", 0.02)
    monkeypatch.setattr(cluster, "PAUSE", 0.01)
    save_model(tiny_model, tmp_path / "w.safetensors")
    write_images(tmp_path / "in", [picture(n, SIZE) for n in range(3)])
    return tmp_path


def prepare(folder, *names, resume=False):
    """One render, of 9 frames in 3 segments, for each name."""
    options = RenderOptions(**OPTIONS)
    return [
        cluster.plan_work(make_job(folder / "in", folder / name, options), folder / "w.safetensors", False, resume)
        for name in names
    ]


def run(works, ray=None, workers=2, cancel=None, progress=lambda progress: None):
    """(by the output's name what became of it, warnings) of all renders."""
    warnings = []
    given = (MACHINE, workers, 1, progress, cancel or Cancellation(), warnings.append)
    ended = {work.output.name: outcome for work, outcome in cluster.render_on_cluster(ray or Threads(), works, *given)}
    return ended, warnings


def failing(monkeypatch, *failures):
    """Lets the first calls of workers' ``render`` fail; the segments of all calls, in order."""
    left, rendered, original = list(failures), [], cluster.Worker.render

    def render(self, plan, segment):
        rendered.append(segment)
        if left and (error := left.pop(0)) is not None:
            raise error
        return original(self, plan, segment)

    monkeypatch.setattr(cluster.Worker, "render", render)
    return rendered


def images(path):
    return [frame.image for frame in read(path)[1]]


@pytest.fixture
def expected(folder):
    render_video("in", "expected", weights="w.safetensors", **OPTIONS)
    return images(folder / "expected")


@pytest.mark.slow
def test_several_renders_equal_those_by_one_process(folder, expected):
    seen = []
    ended, warnings = run(prepare(folder, "a", "b"), progress=seen.append)
    assert {name: outcome.frames for name, outcome in ended.items()} == {"a": 9, "b": 9}
    assert all(same_pictures(images(folder / name), expected) for name in ("a", "b"))
    assert not warnings
    assert seen[-1].total == 18
    assert [progress.frames for progress in seen] == sorted(progress.frames for progress in seen)
    assert not list(folder.glob("*.segments"))


@pytest.mark.slow
@pytest.mark.parametrize("failure", [LostError("killed"), OSError(5, "stale file handle"), Busy("still locked")])
def test_what_a_worker_loses_is_rendered_again(folder, expected, monkeypatch, failure):
    rendered = failing(monkeypatch, None, failure, failure)
    ended, warnings = run(prepare(folder, "a"), workers=1)
    assert isinstance(ended["a"], Rendered)
    assert same_pictures(images(folder / "a"), expected)
    assert sorted(rendered) == [0, 1, 1, 2, 2] or sorted(rendered) == [0, 1, 1, 1, 2]
    assert len(warnings) == (2 if isinstance(failure, LostError) else 0)
    assert all("a worker on" in text and "was lost; segment" in text for text in warnings)


@pytest.mark.slow
def test_a_segment_that_is_always_lost_fails_its_render_alone(folder, monkeypatch):
    original = cluster.Worker.render

    def render(self, plan, segment):
        if plan["job"]["output"].endswith("bad") and segment == 1:
            raise LostError("out of memory")
        return original(self, plan, segment)

    monkeypatch.setattr(cluster.Worker, "render", render)
    ended, _ = run(prepare(folder, "bad", "good"))
    assert isinstance(ended["good"], Rendered)
    assert str(ended["bad"]) == "segment 1 was rendered 5 times in vain: out of memory"
    assert not (folder / "bad").exists()
    ended, _ = run(prepare(folder, "good2"))
    assert isinstance(ended["good2"], Rendered)


def test_a_fault_of_the_input_is_not_tried_again(folder, monkeypatch):
    rendered = failing(monkeypatch, ValueError("the input is broken"))
    ended, warnings = run(prepare(folder, "a"), workers=1)
    assert str(ended["a"]) == "the input is broken"
    assert rendered == [0]
    assert not warnings
    assert sorted(path.name for path in folder.iterdir()) == ["in", "w.safetensors"]


@pytest.mark.slow
def test_what_is_finished_is_kept_and_gone_on_with(folder, expected, monkeypatch):
    cancel = Cancellation()
    with pytest.raises(Cancelled):
        run(
            prepare(folder, "a"),
            workers=1,
            cancel=cancel,
            progress=lambda progress: progress.frames and cancel.after_segment(),
        )
    assert len(list(workspace_path(folder / "a").glob("0*"))) == 1
    assert not list(workspace_path(folder / "a").glob("partial*"))
    with pytest.raises(FileExistsError, match="--resume"):
        prepare(folder, "a")
    rendered, seen = failing(monkeypatch), []
    ended, _ = run(prepare(folder, "a", resume=True), progress=seen.append)
    assert ended["a"].frames == 9
    assert sorted(rendered) == [1, 2]
    assert seen[0].resumed == 4
    assert same_pictures(images(folder / "a"), expected)


@pytest.mark.slow
def test_a_stop_at_once_leaves_nothing_unfinished(folder, monkeypatch):
    cancel = Cancellation()
    with pytest.raises(Cancelled):
        run(prepare(folder, "a", "b"), cancel=cancel, progress=lambda progress: progress.frames and cancel.now())
    assert not list(folder.glob("*/partial*"))
    ended, _ = run(prepare(folder, "a", "b", resume=True))
    assert all(isinstance(outcome, Rendered) for outcome in ended.values())


@pytest.mark.slow
def test_a_worker_without_the_folder_is_left_out(folder, monkeypatch):
    """And where it was the last one, the line says what to do."""
    ray, original = Threads(), cluster.Worker.render
    blind = []

    def render(self, plan, segment):
        blind.append(self)
        if self is blind[0]:
            raise cluster.NotSharedError(2, "/shared/in is not to be seen there")
        return original(self, plan, segment)

    monkeypatch.setattr(cluster.Worker, "render", render)
    ended, warnings = run(prepare(folder, "a"), ray)
    assert isinstance(ended["a"], Rendered)
    assert warnings == [f"a worker is left out: {socket.gethostname()}: /shared/in is not to be seen there"]
    assert len(ray.killed) == 2
    blind.clear()
    with pytest.raises(RuntimeError, match=r"has no worker that can render: .*/shared/in is not to be seen there"):
        run(prepare(folder, "b"), workers=1)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (lambda self: cluster.About("far", 1, "9.9"), "far has stif-rt 9.9, and this machine"),
        (lambda self: 1 / 0, "it cannot be started: division by zero"),
    ],
)
def test_a_worker_that_cannot_work_is_left_out(folder, monkeypatch, about, said):
    monkeypatch.setattr(cluster.Worker, "about", about)
    with pytest.raises(RuntimeError, match=said):
        run(prepare(folder, "a"))
    assert not workspace_path(folder / "a").exists()


@pytest.mark.parametrize("missing", ["in", "w.safetensors", "a.segments/job.json"])
def test_files_that_a_worker_cannot_see_are_named(folder, missing):
    (work,) = prepare(folder, "a")
    (folder / missing).rename(folder / "away")
    with pytest.raises(cluster.NotSharedError) as raised:
        cluster.Worker(MACHINE, 1).render(work.plan, 0)
    assert raised.value.strerror.startswith(f"{folder / missing} is not to be seen there")


def test_workers_for_the_machines_of_a_cluster():
    small, large = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}
    assert cluster.resources([small, small], "auto", 4) == ({"num_cpus": 2}, 2)
    assert cluster.resources([small, large], "cpu", 4) == ({"num_cpus": 4}, 4)
    assert cluster.resources([small, large], "auto", 4) == ({"num_gpus": 1, "num_cpus": 1}, 2)
    assert cluster.resources([small], "cuda", 4) == ({"num_gpus": 1, "num_cpus": 1}, 0)
    with pytest.raises(ValueError, match="--device cuda:1: each worker of a cluster has one GPU"):
        cluster.resources([large], "cuda:1", 4)


def test_a_cluster_without_room_is_explained(folder):
    with pytest.raises(ValueError, match="no CPU core or GPU for a worker now; give --workers"):
        run(prepare(folder, "a"), Threads(cores=0), workers=None)


def test_ray_that_is_not_installed_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, said = call(monkeypatch, capsys, "cluster", "in", "out", *GIVEN)
    assert status == 1
    assert "a cluster needs Ray" in said
    assert "pip install 'stif-rt[ray]'" in said


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]  # bound, but nobody listens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", "error: no Ray cluster answers at 127.0.0.1:"),
        ("ray://127.0.0.1:{port}", "error: no Ray cluster answers at ray://127.0.0.1:"),
        ("nonsense", "error: --address nonsense: give HOST:PORT"),
        ("auto", "error: this machine is part of no Ray cluster: run ray start here"),
    ],
)
def test_an_address_that_does_not_answer_is_said_at_once(folder, monkeypatch, capsys, closed_port, address, words):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))  # no cluster of this machine is found there
    started = time.perf_counter()
    status, _, said = call(
        monkeypatch, capsys, "cluster", "in", "out", *GIVEN, "--address", address.format(port=closed_port)
    )
    assert status == 1
    assert words in said
    assert time.perf_counter() - started < 10
    assert not workspace_path(folder / "out").exists()


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """Ray itself, with room for two workers of one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where Ray leaves its token
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else they starve where other tests run
        ray = pytest.importorskip("ray")
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=cluster.STORE,
        )
        yield ray
        ray.shutdown()


def kill_the_first_to_write(workspace, killed):
    """Kills the first process that begins a segment, in the middle of it."""
    end = time.perf_counter() + 200
    while not killed and time.perf_counter() < end:
        for path in workspace.glob("partial-*-0*"):
            pid = int(re.match(r"partial-(\d+)-", path.name)[1])
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
        time.sleep(0.001)


@pytest.mark.slow
def test_ray_workers_of_which_one_is_killed_equal_one_process(folder, ray, monkeypatch, capsys):
    for name in ("one.mkv", "two.mkv"):
        write_video(folder / name, [picture(n, SIZE) for n in range(6)], Fraction(10), sound=name == "one.mkv")
    (folder / "broken.mp4").write_bytes(b"broken")
    killed = []
    killer = threading.Thread(target=kill_the_first_to_write, args=(workspace_path(folder / "out/one.mkv"), killed))
    killer.start()
    inputs = ["one.mkv", "two.mkv", "broken.mp4", "--output", "out", "--codec", "ffv1"]
    status, _, said = call(monkeypatch, capsys, "cluster", *inputs, *GIVEN, "--cores", 1, "--address", "local")
    killer.join()
    assert status == 1, said
    assert "broken.mp4 cannot be read as a video" in said
    assert len(killed) == 1, said
    assert "was lost; segment" in said
    assert said.count("wrote 18 frames") == 2
    render_video("one.mkv", "whole.mkv", weights="w.safetensors", codec="ffv1", **OPTIONS)
    whole = images(folder / "whole.mkv")
    assert len(whole) == 18
    assert all(same_pictures(images(folder / "out" / name), whole) for name in ("one.mkv", "two.mkv"))
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["one.mkv", "two.mkv"]


@pytest.mark.slow
def test_a_folder_that_ray_workers_cannot_see_is_said(folder, ray, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "prepare", lambda *arguments: None)  # what they look for there
    given = ["cluster", "in", "out", *GIVEN, "--cores", 1, "--workers", 1, "--address", "local"]
    status, _, said = call(monkeypatch, capsys, *given)
    assert status == 1
    assert f"error: the cluster has no worker that can render: {socket.gethostname()}: {folder}" in said
    assert "job.json is not to be seen there: all machines must have the folder under one name" in said
    assert not workspace_path(folder / "out").exists()
