"""Damaged files by the hundred: never a crash, never a hang; what is written plays."""

import itertools
import random
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.videos import picture

from stif_rt.video.notices import Notices
from stif_rt.video.reader import open_reader
from stif_rt.video.streams import StreamOptions, carry_streams, plan_streams

CONTAINERS = {  # video and sound
    ".mp4": ("libx264", "aac"),
    ".mov": ("mpeg4", "pcm_s16le"),
    ".mkv": ("libx264", "aac"),
    ".ts": ("libx264", "aac"),
    ".avi": ("mpeg4", "libmp3lame"),
    ".mpg": ("mpeg2video", "mp2"),
    ".flv": ("flv", "libmp3lame"),
    ".wmv": ("wmv2", "wmav2"),
    ".webm": ("libvpx-vp9", "libopus"),
}
DAMAGED = 14
"""Files of each container."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {suffix: write_clip(folder / f"clip{suffix}", *codecs) for suffix, codecs in CONTAINERS.items()}


def write_clip(path, video_codec, sound_codec, pictures=12, options=None):
    """Pictures, 25 a second, and a tone; the bytes of the file."""
    with av.open(str(path), "w", container_options=options or {}) as container:
        speed = {"deadline": "realtime", "cpu-used": "8"} if video_codec == "libvpx-vp9" else {}
        video = container.add_stream(video_codec, rate=25, options={"g": "6"} | speed)
        video.width, video.height, video.pix_fmt = 64, 36, "yuv420p"
        sound = container.add_stream(sound_codec, rate=48000, layout="stereo")
        coded = []
        for n in range(pictures):
            coded += video.encode(av.VideoFrame.from_ndarray(picture(n, (36, 64)), format="rgb24"))
        coded += video.encode(None)
        wave = 0.5 * np.sin(np.arange(1920 * pictures) * 2 * np.pi * 440 / 48000)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]).astype(np.float32), format="fltp", layout="stereo")
        frame.rate, frame.pts = 48000, 0
        sound.codec_context.bit_rate = 64000
        coded += sound.encode(frame)
        coded += sound.encode(None)
        for packet in sorted(coded, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path.read_bytes()


def damage(data, seed):
    """Cut off, or with bytes overwritten anywhere or near the beginning."""
    generator = random.Random(seed)
    if seed % 3 == 0:
        return data[: generator.randrange(1, len(data))]
    changed = bytearray(data)
    for _ in range(generator.choice([1, 4, 25])):
        changed[generator.randrange(len(data) if seed % 3 == 1 else min(len(data), 700))] = generator.randrange(256)
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_damaged_files(clips, tmp_path, suffix):
    readable = 0
    for seed in range(DAMAGED):
        source = tmp_path / f"{seed}{suffix}"
        source.write_bytes(damage(clips[suffix], seed))
        reader, refusal = opened(source)
        if reader is None:
            assert str(source) in refusal
            assert "\n" not in refusal
            continue
        frames = list(reader)
        readable += 1
        assert all(a.end == b.start > a.start for a, b in itertools.pairwise(frames))
        assert len({frame.image.shape for frame in frames}) == 1
        target = tmp_path / f"{seed}_{'.mp4' if seed % 2 else '.mkv'}"
        write_with_sound(reader, target, len(frames))
        with av.open(str(target)) as file:
            assert sum(1 for packet in file.demux(video=0) if packet.size) == len(frames)
            assert sum(1 for _ in file.demux()) > 0
    assert readable >= DAMAGED // 3


def opened(path):
    """The reader, or why there is none."""
    try:
        return open_reader(path), ""
    except ValueError as error:
        return None, str(error)


def write_with_sound(reader, target, frames):
    options, notices = StreamOptions(), Notices()
    tracks = plan_streams(reader, target.suffix, options, notices)
    with av.open(str(target), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 32, 18, "yuv420p"
        with carry_streams(container, reader, tracks, options, notices) as mux:
            for n in range(frames):
                container.mux(video.encode(av.VideoFrame(32, 18, "yuv420p")))
                mux(Fraction(n + 1, 25))
            container.mux(video.encode(None))
            mux(None)
    assert all("\n" not in str(notice) for notice in notices)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_whole_files_are_read_without_a_word(clips, tmp_path, suffix):
    source = tmp_path / f"clip{suffix}"
    source.write_bytes(clips[suffix])
    reader = open_reader(source)
    assert len(list(reader)) == 12
    assert [str(notice) for notice in reader.notices] == []
    assert float(reader.rate) == 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_files_cut_off_say_so(tmp_path, suffix):
    """Where the header comes first and promises more than there is."""
    source = tmp_path / f"clip{suffix}"
    data = write_clip(source, *CONTAINERS[suffix], 40, {"movflags": "faststart"} if suffix == ".mp4" else None)
    for share in (0.5, 0.7, 0.85):
        source.write_bytes(data[: int(len(data) * share)])
        reader = open_reader(source)
        assert 0 < len(list(reader)) < 40
        assert any("ends early" in str(notice) for notice in reader.notices)
