/** The timeline: what is known of each frame, the marks, and the playhead. */

import { resetMarks, seek, setMarks } from "./actions.js";
import { state, stateOf, update, watch } from "./state.js";

const canvas = document.querySelector("#timeline");
const tip = document.querySelector("#timeline-tip");
const pen = canvas.getContext("2d");
const lane = new OffscreenCanvas(1, 1);

const HANDLES = 14;
const EDGE = 10;
const REACH = 9;

const NAMES = { ".": "no mask yet", g: "given", f: "found", d: "doubtful", l: "lost" };
// at which share of the lane's height a bar begins: its height tells the state as well as its color
const TOPS = { f: 0.55, d: 0.3, l: 0.1 };
const CODES = { given: 103, found: 102, doubtful: 100, lost: 108 };

const width = () => canvas.clientWidth;
const room = () => width() - 2 * EDGE;
const count = () => state.video?.frames ?? 1;
const left = (index) => EDGE + (index * room()) / count();
const indexAt = (x) => Math.max(0, Math.min(count() - 1, Math.floor(((x - EDGE) / room()) * count())));

export function time(index) {
  const seconds = index / (state.video?.rate || 25);
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  const rest = (seconds % 60).toFixed(2).padStart(5, "0");
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const COLORS = ["given", "found", "doubtful", "lost", "lane", "ink", "dim", "accent", "shade"];
let color = {};

/** Reads the colors of the theme as they are now; a canvas does not know the variables of CSS. */
export function recolor() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  };
  color = Object.fromEntries(COLORS.map(read));
  probe.remove();
  redraw();
}

/** The worst state of the frames behind each pixel, and whether one of them is given. */
function columns(across) {
  const worst = new Uint8Array(across);
  const given = new Uint8Array(across);
  const rank = new Uint8Array(256);
  rank[CODES.found] = 1;
  rank[CODES.doubtful] = 2;
  rank[CODES.lost] = 3;
  const { states } = state;
  const scale = across / states.length;
  for (let index = 0; index < states.length; index += 1) {
    const from = Math.floor(index * scale);
    if (states[index] === CODES.given) given[from] = 1;
    const value = rank[states[index]];
    if (value > worst[from]) worst[from] = value;
  }
  return { worst, given };
}

function drawLane() {
  const ratio = devicePixelRatio;
  lane.width = Math.max(1, Math.round(room() * ratio));
  lane.height = Math.max(1, Math.round((canvas.clientHeight - HANDLES) * ratio));
  const context = lane.getContext("2d");
  context.fillStyle = color.lane;
  context.fillRect(0, 0, lane.width, lane.height);
  if (!state.states.length) return;
  if (state.states.length < lane.width / 2) drawFrames(context, ratio);
  else drawColumns(context, ratio);
}

const LETTERS = { 102: "f", 100: "d", 108: "l" };
const WORDS = { f: "found", d: "doubtful", l: "lost" };

function bar(context, letter, x, across) {
  const top = Math.round(lane.height * TOPS[letter]);
  context.fillStyle = color[WORDS[letter]];
  context.fillRect(x, top, across, lane.height - top);
}

function drawFrames(context, ratio) {
  const across = lane.width / state.states.length;
  const gap = across > 6 * ratio ? ratio : 0;
  state.states.forEach((code, index) => {
    const [from, to] = [Math.round(index * across), Math.round((index + 1) * across)];
    if (code === CODES.given) drawGiven(context, (from + to) / 2, Math.min(across - gap, 14 * ratio), ratio);
    else if (LETTERS[code]) bar(context, LETTERS[code], from, Math.max(1, to - from - gap));
  });
}

/** A tall bar with a diamond on it. */
function drawGiven(context, middle, across, ratio) {
  const size = Math.max(3 * ratio, Math.min(6 * ratio, across / 2 + ratio));
  const high = lane.height * 0.26;
  const thick = Math.max(2 * ratio, Math.min(3 * ratio, across));
  // first in the color of the ground, to stand out from its neighbors
  for (const [fill, border] of [[color.lane, 1.5 * ratio], [color.given, 0]]) {
    context.fillStyle = fill;
    context.fillRect(Math.round(middle - thick / 2 - border), high, Math.round(thick + 2 * border), lane.height - high);
    diamond(context, middle, high, size + border);
  }
}

function diamond(context, x, y, size) {
  context.beginPath();
  context.moveTo(x, y - size);
  context.lineTo(x + size, y);
  context.lineTo(x, y + size);
  context.lineTo(x - size, y);
  context.fill();
}

function drawColumns(context, ratio) {
  const { worst, given } = columns(lane.width);
  const spread = Math.ceil(lane.width / state.states.length);
  worst.forEach((value, x) => value && bar(context, ".fdl"[value], x, spread));
  let last = -Infinity;
  given.forEach((value, x) => {
    if (!value || x - last < 3 * ratio) return;
    drawGiven(context, x + spread / 2, 6 * ratio, ratio);
    last = x;
  });
}

function draw() {
  const ratio = devicePixelRatio;
  const [across, down] = [width(), canvas.clientHeight];
  canvas.width = Math.round(across * ratio);
  canvas.height = Math.round(down * ratio);
  if (!state.video) return;
  pen.drawImage(lane, EDGE * ratio, HANDLES * ratio);
  pen.scale(ratio, ratio);
  drawMarks(down);
  if (hovered !== null) line(left(hovered) + frameWidth() / 2, color.dim, 1, down);
  drawPlayhead(down);
}

const frameWidth = () => room() / count();

function drawMarks(down) {
  const [first, last] = state.marks;
  const [from, to] = [left(first), left(last + 1)];
  pen.fillStyle = color.shade;
  pen.fillRect(EDGE, HANDLES, from - EDGE, down);
  pen.fillRect(to, HANDLES, width() - EDGE - to, down);
  pen.fillStyle = color.accent;
  pen.fillRect(from, HANDLES - 3, to - from, 2);
  bracket(from, -1);
  bracket(to, 1);
}

function bracket(x, way) {
  pen.beginPath();
  pen.roundRect(way < 0 ? x - 8 : x, 1, 8, HANDLES - 2, 2);
  pen.fill();
}

function line(x, color, across, down) {
  pen.fillStyle = color;
  pen.fillRect(x - across / 2, HANDLES, across, down - HANDLES);
}

function drawPlayhead(down) {
  const x = left(state.frame) + frameWidth() / 2;
  if (frameWidth() > 4) {
    pen.strokeStyle = color.ink;
    pen.lineWidth = 1.5;
    pen.strokeRect(left(state.frame), HANDLES + 0.75, frameWidth(), down - HANDLES - 1.5);
  }
  line(x, color.ink, 2, down);
  pen.beginPath();
  pen.moveTo(x - 6, 2);
  pen.lineTo(x + 6, 2);
  pen.lineTo(x, HANDLES);
  pen.fill();
}

let hovered = null;
/** @type {null | "first" | "last" | "seek"} */ let drag = null;

const xOf = (event) => event.clientX - canvas.getBoundingClientRect().left;
const yOf = (event) => event.clientY - canvas.getBoundingClientRect().top;

function handleAt(event) {
  const touched = event.pointerType === "touch";
  if (yOf(event) > HANDLES + (touched ? 10 : 2)) return null;
  const reach = touched ? 2 * REACH : REACH;
  const x = xOf(event);
  const [first, last] = [left(state.marks[0]) - 4, left(state.marks[1] + 1) + 4];
  if (Math.abs(x - first) <= reach) return "first";
  return Math.abs(x - last) <= reach ? "last" : null;
}

function down(event) {
  if (!state.video || event.button > 0) return;
  canvas.setPointerCapture(event.pointerId);
  drag = handleAt(event) ?? "seek";
  update({ playing: false });
  if (drag === "seek") seek(indexAt(xOf(event)));
}

function move(event) {
  if (!state.video) return;
  const index = indexAt(xOf(event));
  hovered = event.pointerType === "touch" && !drag ? null : index;
  canvas.style.cursor = drag === "first" || drag === "last" || handleAt(event) ? "ew-resize" : "pointer";
  if (drag === "seek") seek(index);
  else if (drag) moveMark(index);
  showTip();
  draw();
}

function moveMark(index) {
  const [first, last] = state.marks;
  update({ marks: drag === "first" ? [Math.min(index, last), last] : [first, Math.max(index, first)] });
}

function up() {
  if (drag === "first" || drag === "last") setMarks(...state.marks);
  drag = null;
}

function leave() {
  hovered = null;
  showTip();
  draw();
}

function showTip() {
  tip.hidden = hovered === null;
  if (hovered === null) return;
  tip.textContent = `${hovered}  ·  ${time(hovered)}  ·  ${NAMES[stateOf(hovered)]}`;
  const middle = canvas.offsetLeft + left(hovered) + frameWidth() / 2;
  const half = tip.offsetWidth / 2;
  tip.style.left = `${Math.max(half + 4, Math.min(innerWidth - half - 4, middle))}px`;
}

function describe() {
  canvas.setAttribute("aria-valuemax", String(count() - 1));
  canvas.setAttribute("aria-valuenow", String(state.frame));
  canvas.setAttribute("aria-valuetext", `Frame ${state.frame}, ${NAMES[stateOf(state.frame)]}`);
}

function redraw() {
  drawLane();
  draw();
}

canvas.addEventListener("pointerdown", down);
canvas.addEventListener("pointermove", move);
canvas.addEventListener("pointerup", up);
canvas.addEventListener("pointercancel", up);
canvas.addEventListener("pointerleave", leave);
canvas.addEventListener("dblclick", (event) => handleAt(event) && resetMarks());
new ResizeObserver(redraw).observe(canvas);
addEventListener("resize", redraw);
watch(["states", "video"], drawLane);
watch(["states", "video", "frame", "marks"], draw);
watch(["states", "video", "frame"], describe);
