/** Drawing on the stage: lasso, box, clicks, brush and eraser; pan and pinch. */

import { post } from "./api.js";
import { edit, ensureObject, seek } from "./actions.js";
import { shownColors } from "./frames.js";
import { inImage, pan, toImage, toScreen, zoom } from "./stage.js";
import { currentObject, say, state, update, watch } from "./state.js";

const ink = document.querySelector("#stage");
const pen = ink.getContext("2d");

// shorter drags, in CSS pixels, are clicks
const CLICK = 5;
const MOST_POINTS = 2000;
const ACCENT = "#ffffff";

/**
 * @typedef {{tool: string, add: boolean, frame: number, points: [number, number][],
 *   start: [number, number], far: boolean, plain: boolean, brush: number}} Gesture far: dragged; plain: by the left button alone
 */
/** @type {Gesture | null} */ let gesture = null;
/** drawn until their mask is on screen @type {Gesture[]} */ let sent = [];
/** @type {Map<number, [number, number]>} */ const touches = new Map();
let hover = null;
let away = false;
let panning = null;
let spaceHeld = false;
let spaceUsed = false;

export const isDrawing = () => gesture !== null;

export function cancel() {
  gesture = null;
  draw();
}

/** While the space bar is held, drags pan; true at its end if none did. */
export function holdSpace(held) {
  const tapped = spaceHeld && !held && !spaceUsed;
  spaceHeld = held;
  if (held) spaceUsed = false;
  showCursor();
  return tapped;
}

function down(event) {
  if (!state.video) return;
  ink.setPointerCapture(event.pointerId);
  if (event.pointerType === "touch") touches.set(event.pointerId, [event.clientX, event.clientY]);
  if (touches.size > 1) return cancel();
  if (event.button === 1 || spaceHeld) return startPan(event);
  if (event.button !== 1 && state.shown) start(event);
}

function startPan(event) {
  event.preventDefault();
  panning = [event.clientX, event.clientY];
  spaceUsed = true;
  showCursor();
}

function start(event) {
  const takesAway = event.button === 2 || event.altKey;
  const tool = takesAway && state.tool === "brush" ? "eraser" : state.tool;
  const add = tool === "brush" || (tool !== "eraser" && !takesAway && state.add);
  const frame = state.shown.index;
  update({ playing: false });
  seek(frame);
  const point = toImage(event.clientX, event.clientY);
  const start = [event.clientX, event.clientY];
  gesture = { tool, add, frame, points: [point], start, far: false, plain: !takesAway, brush: state.brush };
  draw();
}

function move(event) {
  away = event.altKey || !state.add;
  hover = event.pointerType === "touch" ? null : [event.clientX, event.clientY];
  if (touches.has(event.pointerId) && touches.size > 1) return pinch(event);
  if (panning) return movePan(event);
  if (gesture) extend(event);
  draw();
}

function movePan(event) {
  pan(event.clientX - panning[0], event.clientY - panning[1]);
  panning = [event.clientX, event.clientY];
}

function extend(event) {
  const all = event.getCoalescedEvents?.() ?? [];
  for (const { clientX, clientY } of all.length ? all : [event]) {
    const [x, y] = gesture.start;
    gesture.far ||= Math.hypot(clientX - x, clientY - y) > CLICK;
    const point = toImage(clientX, clientY);
    const [before] = gesture.points.slice(-1);
    if (Math.hypot(point[0] - before[0], point[1] - before[1]) * state.view.scale >= 1) gesture.points.push(point);
  }
}

function pinch(event) {
  const before = [...touches.values()];
  touches.set(event.pointerId, [event.clientX, event.clientY]);
  const after = [...touches.values()];
  const [from, to] = [before, after].map(([a, b]) => ({
    x: (a[0] + b[0]) / 2,
    y: (a[1] + b[1]) / 2,
    apart: Math.hypot(a[0] - b[0], a[1] - b[1]),
  }));
  pan(to.x - from.x, to.y - from.y);
  if (from.apart > 0) zoom(to.apart / from.apart, to.x, to.y);
}

function up(event) {
  touches.delete(event.pointerId);
  if (panning) {
    panning = null;
    showCursor();
  } else if (gesture) {
    const done = gesture;
    gesture = null;
    finish(done);
  }
  draw();
}

function leave(event) {
  touches.delete(event.pointerId);
  panning = null;
  cancel();
}

function finish(done) {
  const { tool, far } = done;
  if (tool === "brush" || tool === "eraser") return send(done, { tool: "brush", points: thin(done.points), radius: done.brush / 2 });
  if (tool === "click" || !far) return click(done);
  if (!done.plain) return say("Draw round an object with the left button. A right click, without dragging, takes away.");
  if (tool === "box") return sendBox(done);
  if (done.points.length > 2) send(done, { tool, points: thin(done.points) });
}

function sendBox(done) {
  const [x, y, width, height] = boxOf(done).map((value) => Math.round(value));
  if (width > 0 && height > 0) send(done, { tool: "box", box: [x, y, width, height] });
}

/** x, y, width, height of what a drag spans, inside the frame. */
function boxOf({ points }) {
  const { width, height } = state.video;
  const [from, to] = [points[0], points.at(-1)];
  const clamp = (value, most) => Math.min(most, Math.max(0, value));
  const [left, right] = [from[0], to[0]].map((x) => clamp(x, width)).sort((a, b) => a - b);
  const [top, bottom] = [from[1], to[1]].map((y) => clamp(y, height)).sort((a, b) => a - b);
  return [left, top, right - left, bottom - top];
}

function thin(points) {
  const every = Math.ceil(points.length / MOST_POINTS);
  return points.filter((_, at) => at % every === 0 || at === points.length - 1).map(([x, y]) => [round(x), round(y)]);
}

const round = (value) => Math.round(value * 100) / 100;

const hasMask = () => shownColors().has(currentObject()?.color.toLowerCase());

function click(done) {
  const [x, y] = done.points[0];
  const { width, height } = state.video;
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  if (!hasMask() && !(state.clicksAlone && done.add)) return say("Draw round the object first; then clicks correct its mask.");
  send(done, { tool: "click", point: [round(x), round(y)], add: done.add });
}

async function send(done, prompt) {
  sent.push(done);
  say("");
  const change = await edit(async () => {
    const object = await ensureObject();
    return post("prompt", { frame: done.frame, object, add: done.add, ...prompt });
  });
  sent = sent.filter((one) => one !== done);
  draw();
  if (change?.found === false) say(UNFOUND, "end");
  else if (change) say(answerText(prompt.tool, change), "good");
}

const UNFOUND = "Nothing stood out there, so the mask is what you drew round. Correct it with clicks or the brush.";

function answerText(tool, { pixels, seconds }) {
  if (tool === "brush") return "";
  const size = `${pixels.toLocaleString("en")} pixels`;
  if (tool === "click") return `Corrected: ${size}.`;
  return `Mask of ${size} found in ${Math.max(0.1, seconds).toFixed(1)} s.`;
}

function draw() {
  pen.resetTransform();
  pen.clearRect(0, 0, ink.width, ink.height);
  if (!state.video) return;
  for (const one of gesture ? [...sent, gesture] : sent) if (one.frame === state.shown?.index) drawGesture(one);
  if (hover && !panning && !spaceHeld) drawHover();
}

function drawGesture(one) {
  inImage(pen);
  if (one.tool === "brush" || one.tool === "eraser") drawStroke(one);
  else if (!one.far || one.tool === "click") drawDot(one);
  else if (!one.plain) return;
  else if (one.tool === "box") dashes(one, () => pen.rect(...boxOf(one)));
  else dashes(one, () => one.points.forEach((point) => pen.lineTo(...point)));
}

/** Dark below bright, to be seen on any picture. */
function dashes(one, path) {
  const thin = 1 / state.view.scale;
  pen.lineJoin = "round";
  pen.beginPath();
  path();
  if (one.tool === "lasso" && one !== gesture) pen.closePath();
  pen.setLineDash([]);
  pen.lineWidth = 3.5 * thin;
  pen.strokeStyle = "rgb(0 0 0 / 60%)";
  pen.stroke();
  pen.lineWidth = 1.75 * thin;
  pen.strokeStyle = ACCENT;
  if (one.tool === "lasso" && one === gesture) closing(one, thin);
  pen.stroke();
}

/** The line that closes the lasso, if it ended here. */
function closing(one, thin) {
  pen.stroke();
  pen.beginPath();
  pen.setLineDash([5 * thin, 5 * thin]);
  pen.moveTo(...one.points.at(-1));
  pen.lineTo(...one.points[0]);
}

function drawStroke(one) {
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = one.brush;
  pen.globalAlpha = 0.55;
  pen.strokeStyle = one.tool === "eraser" ? "#101114" : (currentObject()?.color ?? ACCENT);
  pen.beginPath();
  pen.moveTo(...one.points[0]);
  for (const point of one.points) pen.lineTo(...point);
  pen.stroke();
  pen.globalAlpha = 1;
}

function drawDot({ points, add }) {
  const [x, y] = points[0];
  sign(x, y, add, 9 / state.view.scale);
}

function sign(x, y, add, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = add ? "#1c7c3c" : "#b3261e";
  pen.fill();
  pen.lineWidth = radius / 4.5;
  pen.strokeStyle = ACCENT;
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - radius / 2, y);
  pen.lineTo(x + radius / 2, y);
  if (add) {
    pen.moveTo(x, y - radius / 2);
    pen.lineTo(x, y + radius / 2);
  }
  pen.stroke();
}

function drawHover() {
  const [x, y] = toImage(...hover);
  const thin = 1 / state.view.scale;
  inImage(pen);
  if (state.tool === "brush" || state.tool === "eraser") drawRing(x, y, thin);
  else if (!gesture && !state.running && hasMask()) sign(x + 13 * thin, y + 13 * thin, !away, 6 * thin);
}

/** The brush in its true size. */
function drawRing(x, y, thin) {
  for (const [width, color] of [[3, "rgb(0 0 0 / 70%)"], [1.25, "#fff"]]) {
    pen.lineWidth = width * thin;
    pen.strokeStyle = color;
    pen.beginPath();
    pen.arc(x, y, state.brush / 2, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function showCursor() {
  ink.dataset.cursor = panning ? "grabbing" : spaceHeld ? "grab" : state.tool;
}

/** The largest brush, as wide as a quarter of the frame. */
export const mostBrush = () => (state.video ? Math.max(2, Math.floor(Math.max(state.video.width, state.video.height) / 4)) : 200);

export function sizeBrush(way) {
  const step = Math.max(1, Math.round(state.brush * 0.12));
  update({ brush: Math.max(1, Math.min(mostBrush(), state.brush + way * step)) });
}

function wheel(event) {
  event.preventDefault();
  if (!state.video) return;
  // with Shift, some browsers turn the wheel into a horizontal one
  const turn = event.deltaY || event.deltaX;
  if (event.shiftKey) return sizeBrush(turn < 0 ? 1 : -1);
  const pixels = turn * (event.deltaMode === 1 ? 16 : 1);
  const speed = event.ctrlKey ? 0.01 : 0.0015;
  zoom(Math.exp(-Math.max(-240, Math.min(240, pixels)) * speed), event.clientX, event.clientY);
}

ink.addEventListener("pointerdown", down);
ink.addEventListener("pointermove", move);
ink.addEventListener("pointerup", up);
ink.addEventListener("pointercancel", leave);
ink.addEventListener("pointerleave", () => {
  hover = null;
  draw();
});
// the frame takes no focus from a click, so that its ring means the keyboard
ink.addEventListener("mousedown", (event) => {
  event.preventDefault();
  document.activeElement?.blur();
});
ink.addEventListener("contextmenu", (event) => event.preventDefault());
ink.addEventListener("wheel", wheel, { passive: false });
watch(["tool"], showCursor);
watch(["shown", "view", "tool", "brush", "video", "object", "objects"], draw);

window.stm = Object.freeze({ toScreen, toImage });
