import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from helpers.command_line import call
from helpers.videos import picture, write_images, write_video

from stif_rt import Runtime, flow_to_image
from stif_rt.data.resize import imresize
from stif_rt.video.reader import open_reader

pytest.importorskip("uvicorn", reason="needs the packages of the extra view")
testclient = pytest.importorskip("starlette.testclient", reason="needs starlette and httpx")

from stif_rt.view import pictures, server  # noqa: E402
from stif_rt.view.clip import Clip  # noqa: E402
from stif_rt.view.pictures import Viewer, parse_wish  # noqa: E402

WISH = {"number": 1, "t": 0.23, "centre": [0.5, 0.5], "zoom": 2, "size": [64, 36], "layers": ["picture"], "fine": True}
BASE = "http://localhost:8421"
WISHES = "ws://localhost:8421/wishes"


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [picture(n) for n in range(6)]


@pytest.fixture(scope="module")
def runtime(tiny_model) -> Runtime:
    return Runtime.from_model(tiny_model, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def viewer(images, runtime, tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("view") / "clip", images)
    return Viewer(open_reader(folder, Fraction(10)), runtime)


@pytest.fixture
def client(viewer):
    return testclient.TestClient(server.make_app(viewer), base_url=BASE)


def decoded(message: bytes) -> tuple[dict, np.ndarray]:
    (length,) = struct.unpack_from("<I", message)
    packet = av.Packet(message[4 + length :])
    (frame,) = av.CodecContext.create("mjpeg", "r").decode(packet)
    rgb = frame.reformat(format="rgb24", src_colorspace="ITU601", src_color_range="JPEG", threads=1)
    return json.loads(message[4 : 4 + length]), rgb.to_ndarray()


def answers(page, wish: dict) -> list[tuple[dict, np.ndarray]]:
    """All pictures for a wish, the last one included."""
    page.send_text(json.dumps(wish))
    got = [decoded(page.receive_bytes())]
    while not got[-1][0]["last"]:
        got.append(decoded(page.receive_bytes()))
    return got


def assembled(got, layer: str, size: tuple[int, int], outputs: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    """The fine pieces of a layer as the page puts them together."""
    canvas = np.full((*size, 3), -1)
    for header, image in got:
        if header["layer"] == layer and header["quality"] == "fine":
            left, top = header["rectangle"][0] * outputs[1] - corner[1], header["rectangle"][1] * outputs[0] - corner[0]
            y, x = round(top), round(left)
            canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    return canvas


def assert_close(image, expected):
    """Equal but for JPEG."""
    difference = np.abs(image.astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() < 1.5
    assert difference.max() < 16


@pytest.mark.parametrize("tile", [1 << 18, 400], ids=["one tile", "tiles"])
def test_fine_picture_is_the_runtimes(client, images, runtime, monkeypatch, tile):
    monkeypatch.setitem(pictures.TILE_PIXELS, "cpu", tile)
    with client.websocket_connect(WISHES) as page:
        assert page.receive_json()["width"] == 32
        got = answers(page, WISH)
    expected = runtime.encode(images[2], images[3]).render(0.3, size=(36, 64), output="uint8")
    assert [header["quality"] for header, _ in got] == ["coarse"] + ["fine"] * (len(got) - 1)
    assert (len(got) > 2) == (tile == 400)
    assert all((h["before"], h["after"]) == (0.2, 0.3) and h["t"] == pytest.approx(0.3) for h, _ in got)
    assert_close(assembled(got, "picture", (36, 64), (36, 64), (0, 0)), expected)


def test_zoomed_part_of_all_layers(client, images, runtime):
    """The window is 20x10 pixels about the middle of the picture's right upper quarter, five times enlarged."""
    wish = WISH | {"centre": [0.75, 0.25], "zoom": 5, "size": [20, 10], "layers": ["picture", "blend", "flow"]}
    with client.websocket_connect(WISHES) as page:
        page.receive_json()
        got = answers(page, wish)
    size, (y, x) = (90, 160), (18, 110)  # 0.25 * 90 - 5 is 17.5, which rounds up
    pair = runtime.encode(images[2], images[3])
    expected = pair.render(0.3, size=size, region=(y, x, 10, 20), output="uint8")
    assert_close(assembled(got, "picture", (10, 20), size, (y, x)), expected)
    blend = 0.7 * torch.from_numpy(images[2]).float() + 0.3 * torch.from_numpy(images[3]).float()
    large = imresize(blend.movedim(-1, 0), size).clamp(0, 255)[:, y : y + 10, x : x + 20].movedim(0, -1)
    assert_close(assembled(got, "blend", (10, 20), size, (y, x)), large.round())
    flow = pair.flow(0.5, size=(18, 32))[:2]
    lengths = flow.square().sum(0).sqrt().flatten().sort().values
    largest = max(float(lengths[int(np.ceil(0.99 * len(lengths))) - 1]), 0.5) * 5
    colours = flow_to_image(pair.flow(0.3, size=size, region=(y, x, 10, 20)), largest)
    assert_close(assembled(got, "flow", (10, 20), size, (y, x)), colours)


def test_large_clip_gets_its_coarse_picture_from_shrunk_frames(client, monkeypatch, viewer):
    monkeypatch.setattr(viewer, "_small_side", 16)
    monkeypatch.setattr(viewer, "_shrinks", True)
    viewer._pairs.clear()
    with client.websocket_connect(WISHES) as page:
        page.receive_json()
        (coarse,) = answers(page, WISH | {"fine": False})
        assert not viewer._pairs
        fine = answers(page, WISH)[-1]
    assert len(viewer._pairs) == 1
    assert coarse[0]["quality"] == "coarse"
    assert np.abs(coarse[1].astype(int) - fine[1]).mean() < 40


def test_newest_wish_wins(client, monkeypatch):
    monkeypatch.setitem(pictures.TILE_PIXELS, "cpu", 64)
    started, let = threading.Event(), threading.Event()
    answer = pictures.Viewer._layer

    def slow(self, *arguments):
        started.set()
        assert let.wait(10)
        return answer(self, *arguments)

    monkeypatch.setattr(pictures.Viewer, "_layer", slow)
    with client.websocket_connect(WISHES) as page:
        page.receive_json()
        page.send_text(json.dumps(WISH))
        assert started.wait(10)
        for number in range(2, 6):
            page.send_text(json.dumps(WISH | {"number": number, "t": number / 20}))
        page.send_text("nonsense")  # answered at once: all wishes before have been read
        assert page.receive_json()["event"] == "error"
        let.set()
        numbers = []
        while True:
            header, _ = decoded(page.receive_bytes())
            numbers.append(header["number"])
            if header["last"]:
                break
    assert set(numbers) == {1, 5}
    assert numbers.count(1) == 1


@pytest.mark.parametrize(
    "message",
    [
        "",
        "nonsense",
        "[" * 50_000,
        "[]",
        "{}",
        json.dumps(WISH | {"t": "now"}),
        json.dumps(WISH | {"t": -1}),
        json.dumps(WISH).replace("0.23", "NaN"),
        json.dumps(WISH).replace("0.23", "Infinity"),
        json.dumps(WISH | {"t": True}),
        json.dumps(WISH | {"centre": [0.5]}),
        json.dumps(WISH | {"centre": [0.5, 2]}),
        json.dumps(WISH | {"zoom": 0}),
        json.dumps(WISH | {"zoom": 9999}),
        json.dumps(WISH | {"size": [0, 5]}),
        json.dumps(WISH | {"size": [10**9, 5]}),
        json.dumps(WISH | {"size": [1.5, 5]}),
        json.dumps(WISH | {"layers": ["../../etc/passwd"]}),
        json.dumps(WISH | {"layers": [[]]}),
        json.dumps(WISH | {"layers": []}),
        json.dumps(WISH | {"fine": 1}),
        json.dumps(WISH | {"number": 2**60}),
    ],
)
def test_nonsense_is_an_error_on_the_page(client, message):
    with client.websocket_connect(WISHES) as page:
        page.receive_json()
        page.send_text(message)
        event = page.receive_json()
        assert event["event"] == "error"
        assert "\n" not in event["message"]
        assert 0 < len(event["message"]) < 300
        page.send_bytes(b"\x00\xff")
        assert page.receive_json()["event"] == "error"
        assert answers(page, WISH)[-1][0]["last"]


def test_failed_render_is_an_error_on_the_page(client, monkeypatch):
    with client.websocket_connect(WISHES) as page:
        page.receive_json()
        with monkeypatch.context() as context:
            context.setattr(pictures.Viewer, "_layer", lambda *_: 1 / 0)
            page.send_text(json.dumps(WISH))
            assert page.receive_json() == {"event": "error", "message": "division by zero"}
        assert answers(page, WISH)[-1][0]["last"]


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": BASE}, True),
        ({"host": "127.0.0.1:8421", "origin": "http://127.0.0.1:8421"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://localhost:3000"}, False),
        ({"origin": "https://localhost:8421"}, False),
        ({"origin": "http://localhost:8421.evil.example"}, False),
        ({"host": "evil.example:8421"}, False),
        ({"host": "evil.example:8421", "origin": "http://evil.example:8421"}, False),
        ({"host": "localhost.evil.example"}, False),
        ({"host": "192.168.0.7:8421"}, False),
        ({"host": "[::1"}, False),
        ({"host": ""}, False),
    ],
)
def test_foreign_hosts_and_origins_are_refused(client, headers, allowed):
    assert client.get("/", headers=headers).status_code == (200 if allowed else 403)
    if allowed:
        with client.websocket_connect(WISHES, headers=headers) as page:
            assert page.receive_json()["event"] == "clip"
    else:
        with (
            pytest.raises(testclient.WebSocketDisconnect),
            client.websocket_connect(WISHES, headers=headers) as page,
        ):
            page.receive_json()


@pytest.mark.parametrize("path", ["/view.css/../../server.py", "/server.py", "/%2e%2e/server.py", "/clip", "/000.png"])
def test_no_other_file_is_served(client, path):
    assert client.get(path).status_code == 404
    for served, (_, kind) in server.FILES.items():
        response = client.get(served)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in response.headers["content-security-policy"]


def test_moments_follow_the_plan(tmp_path):
    """In order and out of it; a scene begins at frame 4, so that nothing lies between 3 and 4."""
    images = [picture(n) for n in range(4)] + [255 - picture(n) // 4 for n in range(4, 9)]
    with_cut = Clip(open_reader(write_video(tmp_path / "clip.mp4", images, Fraction(10))))
    assert float(with_cut.duration) == pytest.approx(0.9, abs=0.01)
    for time in [0, 0.05, 0.32, 0.38, 0.4, 0.45, 0.89, 5, 0.05, 0.38]:
        before, after, (t,) = with_cut.at(Fraction(str(time)))
        actual = (float(before.start), float(after.start), t)
        expected = {
            0: (0, 0.1, 0),
            0.05: (0, 0.1, 0.5),
            0.32: (0.3, 0.3, 0),
            0.38: (0.4, 0.4, 1),
            0.4: (0.4, 0.5, 0),
            0.45: (0.4, 0.5, 0.5),
        }.get(time, (0.8, 0.8, 1))
        assert actual == pytest.approx(expected), time


def test_wish_is_what_the_page_sends():
    wish = parse_wish(json.dumps(WISH | {"t": 1, "layers": ["blend", "flow", "blend"]}))
    assert (wish.time, wish.size, wish.layers, wish.fine) == (1, (64, 36), ("blend", "flow"), True)


def test_port_in_use_is_one_line(monkeypatch, capsys, tmp_path, images):
    clip = write_images(tmp_path / "clip", images[:2])
    with socket.socket() as occupied:
        occupied.bind((server.HOST, 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        status, _, err = call(monkeypatch, capsys, "view", clip, "--port", port)
    assert status == 1
    assert f"port {port} cannot be used" in err
    assert "--port" in err
    assert "Traceback" not in err


@pytest.fixture
def address(tmp_path, images):
    """Of a viewer in a process of its own, with the bundled weights."""
    clip = write_video(tmp_path / "clip.mp4", images, Fraction(10))
    command = [sys.executable, "-m", "stif_rt.cli", "view", str(clip), "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        yield next(word for word in line.split() if word.startswith("http://"))
        process.terminate()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if shutil.which("chromium") is None:
        pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
def test_two_fingers_zoom_in_chromium(browser, address):
    """What lay between them stays there, and is larger by as much as they are further apart."""
    page = browser.new_page(viewport={"width": 900, "height": 400}, bypass_csp=True, has_touch=True)
    page.goto(address)
    page.wait_for_function("document.body.dataset.settled === 'true'", timeout=60_000)
    between = """([x, y]) => { const r = ratio(), c = canvas.getBoundingClientRect();
        return [state.zoom, ((x - c.left) * r - canvas.width / 2) / (clip.width * state.zoom) + state.x,
                ((y - c.top) * r - canvas.height / 2) / (clip.height * state.zoom) + state.y]; }"""
    touch = page.context.new_cdp_session(page)
    before = page.evaluate(between, [450, 150])
    for kind, half in (("Start", 50), ("Move", 75), ("Move", 100), ("End", None)):
        points = [] if half is None else [{"x": 450 - half, "y": 150, "id": 0}, {"x": 450 + half, "y": 150, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.wait_for_function("!wanted && document.body.dataset.settled === 'true'", timeout=60_000)
    after = page.evaluate(between, [450, 150])
    assert after == pytest.approx([2 * before[0], *before[1:]], rel=0.01)
    assert page.evaluate("[fingers.size, drag]") == [0, None]


@pytest.mark.slow
def test_in_chromium(browser, address, images, tmp_path):
    """A slider is drawn, a part zoomed with the wheel, and what the canvas shows is what the runtime renders."""
    page = browser.new_page(viewport={"width": 900, "height": 400}, bypass_csp=True)  # for evaluate
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_function("document.body.dataset.settled === 'true'", timeout=60_000)
    slider = page.locator("#time").bounding_box()
    y = slider["y"] + slider["height"] / 2
    page.mouse.move(slider["x"] + 8, y)
    page.mouse.down()
    page.mouse.move(slider["x"] + slider["width"] * 0.4, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    canvas = page.locator("#canvas").bounding_box()
    page.mouse.move(canvas["x"] + canvas["width"] * 0.55, canvas["y"] + canvas["height"] * 0.4)
    page.mouse.wheel(0, -300)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    page.wait_for_function("!wanted && document.body.dataset.settled === 'true'", timeout=60_000)
    seen = page.evaluate(
        """() => ({...state, width: canvas.width, height: canvas.height,
        pixels: [...context.getImageData(0, 0, canvas.width, canvas.height).data]})"""
    )
    assert not errors
    assert 0.2 < seen["time"] < 0.25
    width, height = seen["width"], seen["height"]
    shown = np.array(seen["pixels"], np.uint8).reshape(height, width, 4)[..., :3]
    wish = WISH | {"t": seen["time"], "centre": [seen["x"], seen["y"]], "zoom": seen["zoom"], "size": [width, height]}
    view = pictures.view_of(parse_wish(json.dumps(wish)), (18, 32))
    assert view.region[2:] == (height, width), "the zoomed picture must fill the canvas"
    frames = [frame.image for frame in open_reader(tmp_path / "clip.mp4")]
    pair = Runtime.load(device="cpu", dtype="float32").encode(frames[2], frames[3])
    expected = pair.render((seen["time"] - 0.2) / 0.1, size=view.outputs, region=view.region, output="uint8")
    assert_close(shown, expected)
