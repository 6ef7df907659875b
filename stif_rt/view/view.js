"use strict";
// One canvas shows the part of the enlarged picture that the wishes ask for. Answers are pieces of that picture, placed by
// their rectangles (parts of the whole, so that they can be drawn at another zoom until the next ones come).

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const context = canvas.getContext("2d", { alpha: false });
const SPEEDS = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4];
const SPEED_NAMES = ["1/64", "1/32", "1/16", "1/8", "1/4", "1/2", "1", "2", "4"];
const LARGEST_SIDE = 65536;

let clip = null; // what the server says of the clip
let socket = null;
const state = { time: 0, x: 0.5, y: 0.5, zoom: 1, fitted: true, mode: "picture", split: 0.5, speed: 4, playing: false, full: false };
// number: of the wish whose pieces these are; coarse: a piece by layer; fine: pieces by layer, older: those of the view before
let scene = { number: 0, time: -1, coarse: {}, fine: {}, older: {} };
let wishes = 0; // the number of the newest one
let wanted = false; // whether the next animation frame makes a wish
let settling = 0; // until when only coarse pictures are asked for: encoding a pair of frames cannot be interrupted
let waiting = false; // while playing: for the answer to the last wish
let asked = new Map(); // when each wish was made
let played = 0; // when the last step of playing was
let drag = null;
const fingers = new Map(); // where each pointer is that is down on the canvas
let sliding = false; // the slider between two frames is held, on which its ends must not move

const SETTLED = 150; // milliseconds
const layers = () => (state.mode === "split" ? ["picture", "blend"] : [state.mode]);
const wholeWidth = () => Math.max(1, Math.floor(clip.width * state.zoom + 0.5));
const wholeHeight = () => Math.max(1, Math.floor(clip.height * state.zoom + 0.5));
const corner = (middle, whole, side) => Math.min(Math.max(Math.floor(middle * whole - side / 2 + 0.5), 1 - side), whole - 1);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function connect() {
  socket = new WebSocket(`ws://${location.host}/wishes`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") hear(JSON.parse(data));
    else receive(data);
  };
  socket.onclose = () => {
    say("the server has gone; start stif-rt view again", true);
    setTimeout(connect, 1500);
  };
}

function hear(event) {
  if (event.event !== "clip") {
    waiting = false;
    say(event.message, event.event === "error");
    return;
  }
  clip = event;
  say("");
  document.title = `${clip.name} · stif-rt`;
  $("name").textContent = clip.name;
  $("engine").textContent = `${clip.width}×${clip.height}, ${Number(clip.rate.toFixed(3))} frames/s · ${clip.engine}`;
  $("time").max = clip.duration;
  $("length").textContent = `${clip.duration.toFixed(2)} s`;
  document.querySelector('[data-mode="flow"]').disabled = !clip.layers.includes("flow");
  wishes = 0;
  scene = { number: 0, time: -1, coarse: {}, fine: {}, older: {} };
  waiting = false;
  if (state.fitted) fit();
  wish();
}

function say(text, lasting = false) {
  $("message").textContent = text;
  $("message").hidden = !text;
  clearTimeout(say.timer);
  if (text && !lasting) say.timer = setTimeout(() => ($("message").hidden = true), 8000);
}

function wish() {
  wanted = true;
  show();
}

function send() {
  if (!clip || socket.readyState !== WebSocket.OPEN || !canvas.width) return;
  wanted = false;
  waiting = true;
  wishes += 1;
  asked.set(wishes, performance.now());
  document.body.dataset.settled = "false";
  const { time, x, y, zoom, playing, full } = state;
  const size = [canvas.width, canvas.height];
  const fine = playing ? full : performance.now() >= settling;
  socket.send(JSON.stringify({ number: wishes, t: time, centre: [x, y], zoom, size, layers: layers(), fine }));
}

async function receive(data) {
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const image = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  if (header.number < scene.number) return;
  if (header.number > scene.number) begin(header);
  const piece = { image, rectangle: header.rectangle };
  if (header.quality === "coarse") scene.coarse[header.layer] = piece;
  else (scene.fine[header.layer] ||= []).push(piece);
  const elapsed = Math.round(performance.now() - asked.get(header.number));
  if (header.quality === "coarse") scene.coarseTime = elapsed;
  if (header.last) {
    scene.older = {};
    document.body.dataset.settled = String(header.number === wishes && !wanted && header.quality === "fine");
    if (header.quality === "fine") scene.fineTime = elapsed;
    waiting = false;
    $("message").hidden = true;
  }
  const fine = scene.fineTime === undefined ? "" : ` · fine ${scene.fineTime} ms`;
  $("latency").textContent = `coarse ${scene.coarseTime ?? "…"} ms${fine}`;
  show();
}

function begin(header) {
  for (const number of asked.keys()) if (number < header.number) asked.delete(number);
  const older = {};
  if (header.time === scene.time)
    for (const layer of Object.keys(scene.fine)) older[layer] = [...(scene.older[layer] || []), ...scene.fine[layer]].slice(-64);
  scene = { number: header.number, time: header.time, coarse: {}, fine: {}, older };
  if (!sliding) Object.assign(state, { before: header.before, after: header.after });
  const held = header.before === header.after;
  $("t").disabled = held;
  if (!sliding) {
    $("t").value = held ? 0 : header.t;
    $("before").textContent = `${header.before.toFixed(3)} s`;
    $("after").textContent = held ? "held" : `${header.after.toFixed(3)} s`;
  }
}

function place(piece) {
  const [left, top, right, bottom] = piece.rectangle;
  const W = wholeWidth(), H = wholeHeight();
  const X = corner(state.x, W, canvas.width), Y = corner(state.y, H, canvas.height);
  const x = left * W - X, y = top * H - Y, width = (right - left) * W, height = (bottom - top) * H;
  const exact = Math.round(width) === piece.image.width && Math.abs(x - Math.round(x)) < 0.01;
  context.imageSmoothingEnabled = !exact;
  if (exact) context.drawImage(piece.image, Math.round(x), Math.round(y));
  else context.drawImage(piece.image, x, y, width, height);
}

function paint(layer) {
  context.imageSmoothingQuality = "high";
  const pieces = [scene.coarse[layer], ...(scene.older[layer] || []), ...(scene.fine[layer] || [])];
  pieces.filter(Boolean).forEach(place);
}

function draw() {
  context.fillStyle = "#0e1014";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!clip) return;
  const split = state.mode === "split";
  paint(split ? "picture" : state.mode);
  if (!split) return;
  const line = Math.round(state.split * canvas.width);
  context.save();
  context.beginPath();
  context.rect(0, 0, line, canvas.height);
  context.clip();
  context.fillRect(0, 0, line, canvas.height);
  paint("blend");
  context.restore();
}

function show() {
  if (show.pending) return;
  show.pending = true;
  requestAnimationFrame(step);
}

function step(now) {
  show.pending = false;
  if (state.playing && clip) {
    if (!waiting) {
      const next = state.time + ((now - played) / 1000) * SPEEDS[state.speed];
      state.time = next >= clip.duration ? 0 : next;
      played = now;
      wanted = true;
    }
    show();
  }
  if (wanted) send();
  draw();
  $("clock").textContent = `${state.time.toFixed(4)} s`;
  $("time").value = state.time;
  $("zoom").textContent = `${(state.zoom).toPrecision(3)} ×`;
  $("split").hidden = state.mode !== "split";
  $("split").style.left = `${state.split * 100}%`;
  $("key").hidden = state.mode !== "flow";
}

function seek(time) {
  if (!clip) return;
  state.time = clamp(time, 0, clip.duration);
  settling = performance.now() + SETTLED;
  clearTimeout(seek.timer);
  seek.timer = setTimeout(wish, SETTLED + 5);
  wish();
}

function play(on) {
  state.playing = on;
  played = performance.now();
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  wish();
}

function faster(steps) {
  state.speed = clamp(state.speed + steps, 0, SPEEDS.length - 1);
  $("speed").textContent = `${SPEED_NAMES[state.speed]} ×`;
}

function mode(name) {
  if (name === "flow" && !clip?.layers.includes("flow")) return say("this model predicts no flow");
  state.mode = name;
  for (const button of document.querySelectorAll("[data-mode]"))
    button.setAttribute("aria-pressed", String(button.dataset.mode === name));
  wish();
}

function full(on) {
  state.full = on;
  $("quality").setAttribute("aria-pressed", String(on));
  wish();
}

function fit() {
  if (!clip) return;
  const zoom = Math.min(canvas.width / clip.width, canvas.height / clip.height);
  Object.assign(state, { x: 0.5, y: 0.5, zoom: Math.max(zoom, 0.001), fitted: true });
  wish();
}

// Zooms so that what is at (x, y) of the canvas stays there.
function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
  if (!clip) return;
  const largest = Math.min(LARGEST_SIDE / Math.max(clip.width, clip.height), 64);
  const before = state.zoom;
  state.zoom = clamp(before * factor, Math.min(0.05, before), largest);
  const dx = (x - canvas.width / 2) / clip.width, dy = (y - canvas.height / 2) / clip.height;
  state.x = clamp(state.x + dx / before - dx / state.zoom, 0, 1);
  state.y = clamp(state.y + dy / before - dy / state.zoom, 0, 1);
  state.fitted = false;
  wish();
}

const ratio = () => canvas.width / canvas.clientWidth;
const pointer = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * ratio(), (event.clientY - box.top) * ratio()];
};

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 30 : 1;
  zoom(Math.exp(-clamp(event.deltaY * lines, -300, 300) / 500), ...pointer(event));
}, { passive: false });

canvas.addEventListener("pointerdown", (event) => {
  const [x, y] = pointer(event);
  const onLine = state.mode === "split" && Math.abs(x - state.split * canvas.width) < 14 * ratio();
  fingers.set(event.pointerId, [x, y]);
  drag = fingers.size === 1 ? { x, y, onLine } : null;
  canvas.setPointerCapture(event.pointerId);
  canvas.classList.add("dragged");
});

canvas.addEventListener("pointermove", (event) => {
  const [x, y] = pointer(event);
  const near = state.mode === "split" && Math.abs(x - state.split * canvas.width) < 14 * ratio();
  canvas.style.cursor = near ? "ew-resize" : "";
  if (fingers.size === 2 && fingers.has(event.pointerId)) pinch(event.pointerId, x, y);
  if (!drag || !clip) return;
  if (drag.onLine) {
    state.split = clamp(x / canvas.width, 0, 1);
    show();
    return;
  }
  pan(x - drag.x, y - drag.y);
  Object.assign(drag, { x, y });
});

function pan(dx, dy) {
  state.x = clamp(state.x - dx / (clip.width * state.zoom), 0, 1);
  state.y = clamp(state.y - dy / (clip.height * state.zoom), 0, 1);
  state.fitted = false;
  wish();
}

// One of two fingers has moved: what was between them follows their middle, and grows as their distance does.
function pinch(id, x, y) {
  const measure = () => {
    const [[x0, y0], [x1, y1]] = fingers.values();
    return [(x0 + x1) / 2, (y0 + y1) / 2, Math.max(Math.hypot(x1 - x0, y1 - y0), 1)];
  };
  const [x0, y0, before] = measure();
  fingers.set(id, [x, y]);
  const [x1, y1, after] = measure();
  if (!clip) return;
  pan(x1 - x0, y1 - y0);
  zoom(after / before, x1, y1);
}

for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, (event) => {
    fingers.delete(event.pointerId);
    const [left] = fingers.values(); // one finger of two goes on by dragging
    drag = left && fingers.size === 1 ? { x: left[0], y: left[1], onLine: false } : null;
    if (drag) return;
    canvas.classList.remove("dragged");
  });

canvas.addEventListener("dblclick", fit);
$("time").addEventListener("input", () => seek(Number($("time").value)));
$("time").addEventListener("wheel", (event) => {
  event.preventDefault();
  if (clip) seek(state.time - Math.sign(event.deltaY) / clip.rate / 16);
}, { passive: false });
$("t").addEventListener("pointerdown", () => (sliding = true));
for (const name of ["pointerup", "pointercancel", "change"]) $("t").addEventListener(name, () => (sliding = false));
$("t").addEventListener("input", () => {
  // the later frame itself belongs to the pair that begins with it
  const t = Math.min(Number($("t").value), 0.9999);
  if (state.playing) play(false);
  seek(state.before + t * (state.after - state.before));
});
$("play").onclick = () => play(!state.playing);
$("slower").onclick = () => faster(-1);
$("faster").onclick = () => faster(1);
$("quality").onclick = () => full(!state.full);
$("fit").onclick = fit;
$("help-button").onclick = () => ($("help").hidden = !$("help").hidden);
for (const button of document.querySelectorAll("[data-mode]")) button.onclick = () => mode(button.dataset.mode);
for (const element of document.querySelectorAll("button, input")) element.addEventListener("pointerup", () => element.blur());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !clip) return;
  const frame = (event.shiftKey ? 1 : 1 / 8) / clip.rate;
  const toggle = (name) => () => mode(state.mode === name ? "picture" : name);
  const keys = {
    " ": () => play(!state.playing),
    ArrowLeft: () => seek(state.time - frame),
    ArrowRight: () => seek(state.time + frame),
    Home: () => seek(0),
    End: () => seek(clip.duration),
    "[": () => faster(-1),
    "]": () => faster(1),
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    0: fit,
    s: toggle("split"),
    b: toggle("blend"),
    f: toggle("flow"),
    q: () => full(!state.full),
    "?": () => ($("help").hidden = !$("help").hidden),
    Escape: () => ($("help").hidden = true),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

new ResizeObserver(([entry]) => {
  const box = entry.devicePixelContentBoxSize?.[0];
  canvas.width = clamp(box ? box.inlineSize : Math.round(entry.contentRect.width * devicePixelRatio), 1, 8192);
  canvas.height = clamp(box ? box.blockSize : Math.round(entry.contentRect.height * devicePixelRatio), 1, 8192);
  if (state.fitted) fit();
  wish();
}).observe(canvas);

// The wheel of hues that tells directions, as flow_to_image paints them: to the right red, downwards yellow-green.
for (let degrees = 0; degrees < 360; degrees += 10) {
  const wedge = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const at = (angle) => `${50 * Math.cos((angle * Math.PI) / 180)},${50 * Math.sin((angle * Math.PI) / 180)}`;
  wedge.setAttribute("d", `M0,0L${at(degrees)}A50,50,0,0,1,${at(degrees + 10.5)}z`);
  wedge.setAttribute("fill", `hsl(${degrees + 5} 100% 50%)`);
  document.querySelector("#key svg").append(wedge);
}

connect();
