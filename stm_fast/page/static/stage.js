/** The frame, its mask and the ink, and the view of them: zoom and pan. */

import { state, update, watch } from "./state.js";

const view = document.querySelector("#view");
const ink = document.querySelector("#stage");
const pen = view.getContext("2d");
// the mask and its outline, as large as on screen
const [flat, edge] = [new OffscreenCanvas(1, 1), new OffscreenCanvas(1, 1)];
const [flatPen, edgePen] = [flat, edge].map((canvas) => canvas.getContext("2d"));

const MARGIN = 16;
const MOST_SCALE = 40;
const OUTLINE = 1.6;
// from here on single pixels are to be seen
const PIXELS_FROM = 3;

/** Client coordinates of a place in the image; pixel x reaches from x to x + 1. */
export function toScreen(x, y) {
  const { left, top } = ink.getBoundingClientRect();
  const { scale, x: dx, y: dy } = state.view;
  return [left + dx + x * scale, top + dy + y * scale];
}

/** The place in the image at client coordinates. */
export function toImage(clientX, clientY) {
  const { left, top } = ink.getBoundingClientRect();
  const { scale, x: dx, y: dy } = state.view;
  return [(clientX - left - dx) / scale, (clientY - top - dy) / scale];
}

const space = () => [ink.clientWidth, ink.clientHeight];

function fitScale() {
  const [across, down] = space();
  const { width, height } = state.video;
  return Math.max(0.01, Math.min((across - 2 * MARGIN) / width, (down - 2 * MARGIN) / height));
}

export function fit() {
  if (!state.video) return;
  const [across, down] = space();
  const scale = fitScale();
  const { width, height } = state.video;
  update({ view: { scale, x: (across - width * scale) / 2, y: (down - height * scale) / 2, fit: true } });
}

/** Multiplies the scale; the place at client coordinates stays where it is. */
export function zoom(factor, clientX, clientY) {
  if (!state.video) return;
  const { left, top, width, height } = ink.getBoundingClientRect();
  const [x, y] = [(clientX ?? left + width / 2) - left, (clientY ?? top + height / 2) - top];
  const least = Math.min(fitScale(), 1) / 2;
  const scale = Math.min(MOST_SCALE, Math.max(least, state.view.scale * factor));
  const by = scale / state.view.scale;
  update({ view: inside({ scale, x: x - (x - state.view.x) * by, y: y - (y - state.view.y) * by, fit: false }) });
}

export const zoomTo = (scale) => zoom(scale / state.view.scale);

export function pan(dx, dy) {
  const { scale, x, y } = state.view;
  update({ view: inside({ scale, x: x + dx, y: y + dy, fit: false }) });
}

/** A part of the image always stays in sight. */
function inside(place) {
  const [across, down] = space();
  const least = 48;
  const clamp = (at, size, room) => Math.min(room - least, Math.max(least - size, at));
  const x = clamp(place.x, state.video.width * place.scale, across);
  const y = clamp(place.y, state.video.height * place.scale, down);
  return { ...place, x, y };
}

function resize() {
  const [across, down] = space().map((size) => Math.max(1, Math.round(size * devicePixelRatio)));
  for (const canvas of [view, ink, flat, edge]) {
    canvas.width = across;
    canvas.height = down;
  }
  if (state.view.fit) fit();
  update({ view: state.view });
}

/** Lets a context draw in image coordinates. */
export function inImage(context) {
  const { scale, x, y } = state.view;
  const ratio = devicePixelRatio;
  context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
}

function place(context, bitmap) {
  const real = (state.view.scale * devicePixelRatio * state.video.width) / bitmap.width;
  context.imageSmoothingEnabled = real < PIXELS_FROM;
  context.drawImage(bitmap, 0, 0, state.video.width, state.video.height);
}

function draw() {
  wipe(pen);
  const { shown, video } = state;
  if (!video || !shown) return;
  inImage(pen);
  pen.imageSmoothingQuality = "high";
  if (shown.picture) place(pen, shown.picture);
  else drawMissing();
  if (shown.mask && !state.hidden) drawMask(shown.mask);
  document.body.dataset.shown = String(shown.index);
}

function drawMask(mask) {
  wipe(flatPen);
  inImage(flatPen);
  place(flatPen, mask);
  pen.resetTransform();
  pen.globalAlpha = state.opacity;
  pen.drawImage(flat, 0, 0);
  pen.globalAlpha = 1;
  if (state.outline) drawOutline();
}

/** The mask moved to all sides, less the mask itself. */
function drawOutline() {
  const width = OUTLINE * devicePixelRatio;
  wipe(edgePen);
  // by whole pixels, which is several times faster
  edgePen.imageSmoothingEnabled = false;
  for (let turn = 0; turn < 8; turn += 1) {
    const angle = (turn * Math.PI) / 4;
    edgePen.drawImage(flat, width * Math.cos(angle), width * Math.sin(angle));
  }
  edgePen.globalCompositeOperation = "destination-out";
  edgePen.drawImage(flat, 0, 0);
  edgePen.globalCompositeOperation = "source-over";
  pen.drawImage(edge, 0, 0);
}

function wipe(context) {
  context.resetTransform();
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
}

function drawMissing() {
  const { width, height } = state.video;
  pen.fillStyle = "#5a2630";
  pen.fillRect(0, 0, width, height);
}

new ResizeObserver(resize).observe(ink);
// also when only the density of the screen changes
addEventListener("resize", resize);
watch(["shown", "view", "opacity", "outline", "hidden", "video"], draw);
