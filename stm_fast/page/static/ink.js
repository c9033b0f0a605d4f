/** Draws what the pointer does, above the frame: lines, strokes, signs, and the ring of the brush. */

import { inImage, toImage } from "./stage.js";
import { currentObject, state } from "./state.js";

const canvas = document.querySelector("#stage");
const pen = canvas.getContext("2d");
const ACCENT = "#ffffff";
const DARK_BELOW_BRIGHT = [
  [3, "rgb(0 0 0 / 70%)"],
  [1.25, ACCENT],
];

/**
 * plain: by the left button alone; object: 0 if there was none; points: in the image; start: on the screen;
 * far: dragged, not clicked; open: the pointer is still down.
 * @typedef {{tool: string, add: boolean, plain: boolean, frame: number, object: number, brush: number,
 *   pointerId: number, points: [number, number][], start: [number, number], far: boolean, open: boolean}} Gesture
 */

/** @param {Gesture[]} gestures @param {null | number[]} hover where @param {"" | "+" | "-"} correction of a click */
export function drawInk(gestures, hover, correction) {
  pen.resetTransform();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!state.video) return;
  for (const one of gestures) if (one.frame === state.shown?.index) drawGesture(one);
  if (hover) drawHover(hover, correction);
}

/** x, y, width, height of what a drag spans, inside the frame. */
export function boxOf({ points }) {
  const { width, height } = state.video;
  const [from, to] = [points[0], points.at(-1)];
  const clamp = (value, most) => Math.min(most, Math.max(0, value));
  const [left, right] = [from[0], to[0]].map((x) => clamp(x, width)).sort((a, b) => a - b);
  const [top, bottom] = [from[1], to[1]].map((y) => clamp(y, height)).sort((a, b) => a - b);
  return [left, top, right - left, bottom - top];
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
  if (one.tool === "lasso" && !one.open) pen.closePath();
  pen.setLineDash([]);
  pen.lineWidth = 3.5 * thin;
  pen.strokeStyle = "rgb(0 0 0 / 60%)";
  pen.stroke();
  pen.lineWidth = 1.75 * thin;
  pen.strokeStyle = ACCENT;
  if (one.tool === "lasso" && one.open) closing(one, thin);
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

function drawHover(hover, correction) {
  const [x, y] = toImage(...hover);
  const thin = 1 / state.view.scale;
  inImage(pen);
  if (state.tool === "brush" || state.tool === "eraser") drawRing(x, y, thin);
  else if (correction) sign(x + 13 * thin, y + 13 * thin, correction === "+", 6 * thin);
}

/** The brush in its true size. */
function drawRing(x, y, thin) {
  for (const [width, color] of DARK_BELOW_BRIGHT) {
    pen.lineWidth = width * thin;
    pen.strokeStyle = color;
    pen.beginPath();
    pen.arc(x, y, state.brush / 2, 0, 2 * Math.PI);
    pen.stroke();
  }
}
