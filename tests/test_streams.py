import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.videos import picture, write_video

from stif_rt.video.notices import Notices
from stif_rt.video.reader import open_reader
from stif_rt.video.streams import StreamOptions, carry_streams, plan_streams

CASES = Path(__file__).parent / "data" / "cases"
RATE = 48000


def carry(source, target, seconds=None, strict=False, **options):
    """Writes ``target`` with what ``source`` holds besides its pictures, and blank ones of that length."""
    reader, notices = open_reader(source), Notices(strict)
    chosen = StreamOptions(**options)
    tracks = plan_streams(reader, target.suffix, chosen, notices)
    frames = round(25 * (float(reader.duration * chosen.slowdown) if seconds is None else seconds))
    with av.open(str(target), "w") as container:
        video = container.add_stream("libvpx-vp9" if target.suffix == ".webm" else "mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 32, 18, "yuv420p"
        with carry_streams(container, reader, tracks, chosen, notices) as mux:
            for n in range(frames):
                container.mux(video.encode(av.VideoFrame(32, 18, "yuv420p")))
                mux(Fraction(n + 1, 25))
            container.mux(video.encode(None))
            mux(None)
    return [str(notice) for notice in notices]


def packets(path, kind, number=0):
    with av.open(str(path)) as file:
        stream = [stream for stream in file.streams if stream.type == kind][number]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in file.demux(stream) if packet.size]


def described(path):
    with av.open(str(path)) as file:
        return [
            (stream.type, stream.codec_context.codec.canonical_name, stream.language, int(stream.disposition) & 1)
            for stream in file.streams
            if stream.codec_context is not None
        ]


def samples(path, number=0):
    """Mono sound at 48000 a second from time zero on, float [n]."""
    with av.open(str(path)) as file:
        resampler, sound = av.AudioResampler("flt", "mono", RATE), np.zeros(0)
        for frame in file.decode(file.streams.audio[number]):
            start = round(frame.pts * frame.time_base * RATE)
            data = np.concatenate([part.to_ndarray()[0] for part in resampler.resample(frame)] or [np.zeros(0)])
            if start < 0:
                data, start = data[-start:], 0
            sound = np.concatenate([np.resize(sound, max(len(sound), 0)), np.zeros(max(0, start - len(sound)))])
            sound = np.concatenate([sound[:start], data])
        return sound


def write_sound(path, wave, codec="aac", frames=10, gap=None, start=0):
    """A video of 10 frames a second with that sound; ``gap``: packets of it that are left out."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 32, 18, "yuv420p"
        sound = container.add_stream(codec, rate=RATE, layout="mono")
        sample_format = sound.codec_context.format.name
        coded = []
        for n in range(frames):
            coded += video.encode(av.VideoFrame.from_ndarray(picture(n), format="rgb24"))
        coded += video.encode(None)
        for n in range(0, len(wave), 1024):
            part = wave[n : n + 1024].astype(np.float32)[None]
            if "s16" in sample_format:
                part = (part * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(part, format=sample_format, layout="mono")
            frame.rate, frame.pts = RATE, n + start
            if gap is None or n // 1024 not in gap:
                coded += sound.encode(frame)
        coded += sound.encode(None)
        for packet in sorted(coded, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def copy(file, target, delay=Fraction(0)):
    """All streams, the pictures delayed."""
    copies = {stream.index: target.add_stream_from_template(stream, opaque=True) for stream in file.streams}
    for packet in file.demux():
        if packet.size:
            ticks = round(delay / packet.time_base) if packet.stream.type == "video" else 0
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            packet.stream = copies[packet.stream_index]
            target.mux(packet)


def tone(seconds, frequency=440):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)


def click(seconds, at):
    """Silence with a burst of 20 ms."""
    wave = np.zeros(int(seconds * RATE))
    wave[int(at * RATE) : int((at + 0.02) * RATE)] = 0.5
    return wave


def onset(sound):
    return np.nonzero(np.abs(sound) > 0.2)[0][0] / RATE


def test_all_is_copied_where_the_container_can_hold_it(tmp_path):
    source = CASES / "two_sounds_subtitles.mkv"
    assert carry(source, tmp_path / "o.mkv") == []
    assert described(tmp_path / "o.mkv")[1:] == [
        ("audio", "aac", "jpn", 0),
        ("audio", "aac", "eng", 1),
        ("subtitle", "subrip", None, 0),
    ]
    for kind, number in (("audio", 0), ("audio", 1), ("subtitle", 0)):
        copied, original = packets(tmp_path / "o.mkv", kind, number), packets(source, kind, number)
        assert [data for _, data in copied] == [data for _, data in original]
        shifts = {round(float(a - b), 2) for (a, _), (b, _) in zip(copied, original, strict=True)}
        assert len(shifts) == 1
    with av.open(str(tmp_path / "o.mkv")) as file:
        assert file.metadata["title"] == "My film"
        assert [chapter["metadata"]["title"] for chapter in file.chapters()] == ["One", "Two"]
        base = [chapter["time_base"] for chapter in file.chapters()]
        ends = [float(chapter["end"] * b) for chapter, b in zip(file.chapters(), base, strict=True)]
        assert ends == pytest.approx([0.227, 0.477])  # the first picture is at 0.023


def test_what_is_lost_is_named(tmp_path):
    notices = carry(CASES / "two_sounds_subtitles.mkv", tmp_path / "o.mp4")
    assert notices == ["the subtitles (subrip) cannot be stored in .mp4 and are left out; .mkv holds them"]
    assert [entry[1:] for entry in described(tmp_path / "o.mp4")[1:3]] == [("aac", "jpn", 0), ("aac", "eng", 1)]
    with pytest.raises(ValueError, match="the subtitles"):
        carry(CASES / "two_sounds_subtitles.mkv", tmp_path / "o.mp4", strict=True)


def test_sound_can_be_left_out_without_a_word(tmp_path):
    assert carry(CASES / "sound_wma.wmv", tmp_path / "o.mp4", audio=False) == []
    assert [kind for kind, *_ in described(tmp_path / "o.mp4")] == ["video"]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("name", ["audio_dup_dts.mkv", "cat_overlap.ts", "cat_reset_sound.ts", "jump"])
def test_timestamps_of_sound_are_made_to_rise(tmp_path, name, suffix):
    source = CASES / name
    if name == "jump":  # the second part an hour ahead, with sound
        part = write_sound(tmp_path / "0.ts", tone(1))
        options = {"output_ts_offset": "3600"}
        with av.open(str(part)) as file, av.open(str(tmp_path / "1.ts"), "w", container_options=options) as late:
            copy(file, late)
        source = tmp_path / "cat.ts"
        source.write_bytes(part.read_bytes() + (tmp_path / "1.ts").read_bytes())
    target = tmp_path / f"o{suffix}"
    assert not [text for text in carry(source, target) if "jump" not in text]
    times = [time for time, _ in packets(target, "audio")]
    assert all(a < b for a, b in itertools.pairwise(times))
    assert len(times) >= len(packets(source, "audio")) - 2  # what lies before the first picture
    assert 0.4 < float(times[-1]) < 2.1


@pytest.mark.parametrize(
    ("suffix", "codec", "becomes"),
    [(".mp4", "pcm_s16le", "aac"), (".webm", "aac", "opus"), (".mkv", "pcm_s16le", None), (".mp4", "ac3", None)],
)
def test_what_does_not_fit_is_encoded_anew(tmp_path, suffix, codec, becomes):
    source = write_sound(tmp_path / "s.mkv", click(1, 0.6), codec)
    notices = carry(source, tmp_path / f"o{suffix}")
    assert described(tmp_path / f"o{suffix}")[1][1] == (becomes or codec)
    assert len(notices) == (becomes is not None)
    assert all(f"cannot be stored in {suffix} as it is; it is encoded" in text for text in notices)
    assert onset(samples(tmp_path / f"o{suffix}")) == pytest.approx(0.6, abs=0.03)


def test_sound_that_hardly_any_container_holds(tmp_path):
    assert carry(CASES / "sound_wma.wmv", tmp_path / "o.mkv") == [
        "the sound (wmav2) cannot be stored in .mkv as it is; it is encoded as aac"
    ]
    assert len(samples(tmp_path / "o.mkv")) / RATE == pytest.approx(2, abs=0.05)


def test_an_encoder_of_ones_own(tmp_path):
    source = write_sound(tmp_path / "s.mkv", click(1, 0.3))
    assert carry(source, tmp_path / "o.mkv", audio_codec="flac") == []
    assert described(tmp_path / "o.mkv")[1][1] == "flac"
    assert onset(samples(tmp_path / "o.mkv")) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("codec", "suffix", "message"),
    [
        ("nosuch", ".mkv", "no such encoder"),
        ("libx264", ".mkv", "does not encode sound"),
        ("aac", ".webm", "cannot hold"),
    ],
)
def test_encoders_that_cannot_be(tmp_path, codec, suffix, message):
    source = write_sound(tmp_path / "s.mkv", tone(0.2), frames=2)
    with pytest.raises(ValueError, match=message):
        carry(source, tmp_path / f"o{suffix}", audio_codec=codec)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", [None, "aac"])
def test_a_part_has_the_sound_of_that_part(tmp_path, suffix, codec):
    source = write_sound(tmp_path / "s.mkv", click(3, 1.7), frames=30)
    target = tmp_path / f"o{suffix}"
    carry(source, target, 1.0, start=Fraction(6, 5), end=Fraction(11, 5), audio_codec=codec)
    sound = samples(target)
    assert onset(sound) == pytest.approx(0.5, abs=0.05)
    assert len(sound) / RATE == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("slowdown", [Fraction(2), Fraction(5), Fraction(3, 4)])
def test_slow_motion_stretches_sound_and_keeps_its_pitch(tmp_path, slowdown):
    source = write_sound(tmp_path / "s.mkv", tone(1))
    assert carry(source, tmp_path / "o.mp4", slowdown=slowdown) == []
    sound = samples(tmp_path / "o.mp4")
    assert len(sound) / RATE == pytest.approx(float(slowdown), rel=0.1)
    spectrum = np.abs(np.fft.rfft(sound[: len(sound) // 2 * 2]))
    assert spectrum.argmax() * RATE / len(sound) == pytest.approx(440, rel=0.02)


def test_slow_motion_without_sound(tmp_path):
    source = write_sound(tmp_path / "s.mkv", tone(1))
    assert carry(source, tmp_path / "o.mp4", slowdown=Fraction(4), slow_audio="drop") == []
    assert [kind for kind, *_ in described(tmp_path / "o.mp4")] == ["video"]


def test_subtitles_and_chapters_keep_step_with_slow_motion(tmp_path):
    carry(CASES / "two_sounds_subtitles.mkv", tmp_path / "o.mkv", slowdown=Fraction(10))
    with av.open(str(tmp_path / "o.mkv")) as file:
        assert [round(float(chapter["end"] * chapter["time_base"]), 2) for chapter in file.chapters()] == [2.27, 4.77]
        (subtitle,) = [packet for packet in file.demux(file.streams.subtitles[0]) if packet.size]
    (original,) = packets(CASES / "two_sounds_subtitles.mkv", "subtitle")
    assert float(subtitle.duration * subtitle.time_base) == pytest.approx(4.0)
    assert float(subtitle.pts * subtitle.time_base) == pytest.approx(
        float(10 * (original[0] - Fraction(23, 1000))), abs=0.05
    )


@pytest.mark.parametrize("codec", [None, "flac"])
def test_silence_where_sound_is_missing(tmp_path, codec):
    wave = click(2, 1.5) + tone(2) * (np.arange(2 * RATE) < RATE // 2) * 0.2
    source = write_sound(tmp_path / "s.mkv", wave, "flac", 20, gap=range(5, 40))
    carry(source, tmp_path / "o.mkv", audio_codec=codec)
    assert onset(samples(tmp_path / "o.mkv")) == pytest.approx(1.5, abs=0.03)


def test_sound_before_the_first_picture_is_said_to_be_lost(tmp_path):
    source = write_sound(tmp_path / "s.mkv", click(2, 1.3))
    with av.open(str(source)) as file, av.open(str(tmp_path / "late.mkv"), "w") as late:
        copy(file, late, Fraction(1))
    (notice,) = carry(tmp_path / "late.mkv", tmp_path / "o.mkv")
    assert "s of sound before the first picture are left out" in notice
    assert float(notice.split()[0]) == pytest.approx(1, abs=0.05)
    assert onset(samples(tmp_path / "o.mkv")) == pytest.approx(0.3, abs=0.03)


def test_sound_of_an_unknown_kind(tmp_path):
    source = write_sound(tmp_path / "s.mkv", tone(0.5))
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_XYZ"))
    assert carry(source, tmp_path / "o.mkv") == ["the sound (unknown codec) is of an unknown kind and is left out"]
    assert [kind for kind, *_ in described(tmp_path / "o.mkv")] == ["video"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("seed", range(4))
def test_broken_headers_of_sound_cost_their_packets(tmp_path, seed, suffix):
    source = write_sound(tmp_path / "s.ts", tone(2), frames=20)
    data, generator = bytearray(source.read_bytes()), np.random.default_rng(seed)
    headers = [n for n in range(len(data) - 2) if data[n] == 0xFF and data[n + 1] & 0xF6 == 0xF0]
    for place in generator.choice(headers, 8, replace=False):
        data[place + generator.integers(0, 6)] ^= 1 << generator.integers(0, 8)
    source.write_bytes(data)
    target = tmp_path / f"o{suffix}"
    carry(source, target, 2.0)
    assert len(packets(target, "audio")) > 60  # of 94


def test_attachments_and_covers(tmp_path):
    with av.open(str(tmp_path / "s.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 18, "yuv420p"
        container.add_attachment("letters.ttf", "font/ttf", b"a font" * 100)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(stream.encode(None))
    assert carry(tmp_path / "s.mkv", tmp_path / "o.mkv") == []
    with av.open(str(tmp_path / "o.mkv")) as file:
        (attachment,) = file.streams.attachments
        assert (attachment.metadata["filename"], attachment.data) == ("letters.ttf", b"a font" * 100)
    assert carry(tmp_path / "s.mkv", tmp_path / "o.mp4") == [
        "attachments (letters.ttf) cannot be stored in .mp4 and are left out; .mkv holds them"
    ]


def test_a_video_without_anything_else(tmp_path):
    source = write_video(tmp_path / "s.mp4", [picture(n) for n in range(3)])
    assert carry(source, tmp_path / "o.mp4") == []
    assert [kind for kind, *_ in described(tmp_path / "o.mp4")] == ["video"]
