/** Drawing on the stage: lasso, box, clicks, brush and eraser; pan and pinch. */

import { post } from "./api.js";
import { edit, ensureObject, seek } from "./actions.js";
import { hasMask } from "./frames.js";
import { boxOf, drawInk } from "./ink.js";
import { pan, toImage, toScreen, zoom } from "./stage.js";
import { say, state, update, watch } from "./state.js";

const ink = document.querySelector("#stage");

// shorter drags, in CSS pixels, are clicks
const CLICK = 5;
const MOST_POINTS = 2000;

/** @typedef {import("./ink.js").Gesture} Gesture */
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
  // a palm beside the pen
  if (gesture) return;
  if (event.button === 1 || spaceHeld) return startPan(event);
  if ((event.button === 0 || event.button === 2) && state.shown) start(event);
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
  const { clientX, clientY, pointerId } = event;
  const { brush, object } = state;
  const points = [toImage(clientX, clientY)];
  const seen = { points, start: [clientX, clientY], far: false, open: true };
  gesture = { tool, add, plain: !takesAway, frame, object, brush, pointerId, ...seen };
  draw();
}

function move(event) {
  away = event.altKey || !state.add;
  hover = event.pointerType === "touch" ? null : [event.clientX, event.clientY];
  if (touches.has(event.pointerId) && touches.size > 1) return pinch(event);
  if (panning) return movePan(event);
  if (gesture?.pointerId === event.pointerId) extend(event);
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
  } else if (gesture?.pointerId === event.pointerId) {
    const done = { ...gesture, open: false };
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

const LEFT_DRAWS = "Draw around an object with the left button. A right click, without dragging, takes away.";

function finish(done) {
  const { tool, far } = done;
  if (tool === "brush" || tool === "eraser") return sendStroke(done);
  if (tool === "click" || !far) return click(done);
  if (!done.plain) return say(LEFT_DRAWS);
  if (tool === "box") return sendBox(done);
  if (done.points.length > 2) send(done, { tool, points: thin(done.points) });
}

function sendStroke(done) {
  send(done, { tool: "brush", points: thin(done.points), radius: done.brush / 2 });
}

function sendBox(done) {
  const [x, y, width, height] = boxOf(done).map((value) => Math.round(value));
  if (width > 0 && height > 0) send(done, { tool: "box", box: [x, y, width, height] });
}

function thin(points) {
  const every = Math.ceil(points.length / MOST_POINTS);
  return points.filter((_, at) => at % every === 0 || at === points.length - 1).map(([x, y]) => [round(x), round(y)]);
}

const round = (value) => Math.round(value * 100) / 100;

const drawFirst = () =>
  `Draw around the object${state.clicksAlone ? " or click it" : ""} first; then clicks correct its mask.`;

function click(done) {
  const [x, y] = done.points[0];
  const { width, height } = state.video;
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const corrects = hasMask({ glance: false });
  if (!corrects && !(state.clicksAlone && done.add)) return say(drawFirst());
  send({ ...done, corrects }, { tool: "click", point: [round(x), round(y)], add: done.add });
}

async function send(done, prompt) {
  sent.push(done);
  update({ hidden: false });
  say("");
  const change = await edit(async () => {
    const object = done.object || (await ensureObject());
    return post("prompt", { frame: done.frame, object, add: done.add, ...prompt });
  });
  sent = sent.filter((one) => one !== done);
  draw();
  if (change?.found === false) say(UNFOUND, "end");
  else if (change) say(answerText(prompt.tool, done.corrects, change), "good");
}

const UNFOUND = "Nothing stood out there, so the mask is what you drew around. Correct it with clicks or the brush.";

function answerText(tool, corrects, { pixels, seconds }) {
  if (tool === "brush") return "";
  const size = `${pixels.toLocaleString("en")} pixels`;
  if (tool === "click" && corrects) return `Corrected: ${size}.`;
  return `Mask of ${size} found in ${Math.max(0.1, seconds).toFixed(1)} s.`;
}

function draw() {
  const gestures = gesture ? [...sent, gesture] : sent;
  const corrects = !gesture && !state.running && hover !== null && hasMask({ glance: true });
  drawInk(gestures, panning || spaceHeld ? null : hover, corrects ? (away ? "-" : "+") : "");
}

function showCursor() {
  ink.dataset.cursor = panning ? "grabbing" : spaceHeld ? "grab" : state.tool;
}

/** The largest brush, as wide as a quarter of the frame. */
export function mostBrush() {
  const { width, height } = state.video ?? { width: 800, height: 800 };
  return Math.max(2, Math.floor(Math.max(width, height) / 4));
}

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
