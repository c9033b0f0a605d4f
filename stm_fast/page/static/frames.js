/** Brings the frame under the playhead, its picture and its mask together, onto the screen. */

import { bitmap } from "./api.js";
import { BitmapCache } from "./bitmaps.js";
import { complain, currentObject, state, update, watch } from "./state.js";

const WIDTHS = [640, 1280, 1920];
const MEBIBYTE = 2 ** 20;
// browsers open six connections to a server, and each tab's events hold one of them
const AT_ONCE = 2;

const isShown = (one) => one === state.shown?.picture || one === state.shown?.mask;
const pictures = new BitmapCache(256 * MEBIBYTE, isShown);
const masks = new BitmapCache(128 * MEBIBYTE, isShown);

/** The stepped width that the size on screen needs; 0 is the full one. */
function neededWidth() {
  const across = state.video.width * state.view.scale * devicePixelRatio;
  const width = WIDTHS.find((step) => step >= across - 1) ?? 0;
  return width < state.video.width ? width : 0;
}

const soloObject = () => (state.solo ? state.object : 0);

function picture(index, width) {
  const size = width ? `width=${width}&` : "";
  const path = `frame/${index}?${size}key=${encodeURIComponent(state.video.key)}`;
  return pictures.get(path, () => bitmap(path));
}

// frames without a mask, which are most of a new video, need no request
const isEmpty = (index) => state.states[index] === 46;

const maskKey = (index, width, solo) => `${index}/${width}/${solo}`;

async function mask(index, width, solo) {
  if (isEmpty(index)) return null;
  const path = solo ? `mask/${index}?object=${solo}` : `mask/${index}`;
  return masks.get(maskKey(index, width, solo), () => bitmap(path, width));
}

/** Forgets masks that changed; all of them without `indices`. */
export function dropMasks(indices) {
  const old = indices && new Set(indices);
  masks.drop((key) => !old || old.has(parseInt(key, 10)));
  if (!old || old.has(state.frame) || old.has(state.shown?.index)) dropped += 1;
}

/** Forgets everything: another video, or another server. */
export function dropAll() {
  pictures.drop(() => true);
  dropMasks();
}

// how often the mask on screen was dropped, and how often it had been when what is shown was asked for
let dropped = 0;
let known = 0;
let asked = 0;
let answered = 0;
let running = 0;
let settled = [];

/** Resolves when the screen shows the frame under the playhead, with the mask as it is now. */
export function settle() {
  return isCurrent() ? Promise.resolve() : new Promise((resolve) => settled.push(resolve));
}

function isCurrent() {
  const { shown, frame, video } = state;
  if (!video) return true;
  return known === dropped && shown?.index === frame && shown.width === neededWidth() && shown.solo === soloObject();
}

/** Loads what the playhead asks for; requests are bounded, so a dragged playhead skips frames. */
export async function refresh() {
  if (isCurrent()) return release();
  if (running >= AT_ONCE) return;
  const me = ++asked;
  const [index, width, solo, video, drops] = [state.frame, neededWidth(), soloObject(), state.video, dropped];
  running += 1;
  try {
    const [image, ids] = await Promise.all([picture(index, width), mask(index, width, solo)]);
    if (me > answered && video === state.video) present(me, drops, { index, picture: image, mask: ids, width, solo });
  } catch (error) {
    // of a frame that does not exist: another video was opened, which an event tells as well
    if (error.status !== 404) complain(error);
    if (error.status === 0) return release(); // what was asked for is still to be shown
    if (me > answered) present(me, drops, { index, picture: null, mask: null, width, solo });
  } finally {
    running -= 1;
  }
  refresh();
}

function present(me, drops, shown) {
  answered = me;
  known = drops;
  const near = Math.abs(shown.index - (state.shown?.index ?? 0)) <= NEAR;
  update({ shown });
  clearTimeout(timer);
  // a dragged playhead leaves no time for what may not be wanted
  timer = setTimeout(prefetch, near ? 0 : PAUSE_MS);
}

function release() {
  const ready = settled;
  settled = [];
  for (const resolve of ready) resolve();
}

const NEAR = 12;
const PAUSE_MS = 250;
let timer = 0;
let direction = 1;
let last = 0;
let fetching = 0;

function ahead() {
  const { width, height } = state.shown.picture ?? state.video;
  const affordable = Math.floor((128 * MEBIBYTE) / (width * height * 4));
  const wanted = state.playing ? 30 : state.running ? 2 : 6;
  return Math.max(1, Math.min(wanted, affordable));
}

/** Loads the next frames in the direction in which the playhead moved last. */
async function prefetch() {
  const { shown, video } = state;
  if (!shown || !video || state.upload || fetching >= AT_ONCE) return;
  if (shown.index !== last) direction = shown.index > last ? 1 : -1;
  last = shown.index;
  for (let step = 1; step <= ahead(); step += 1) {
    const index = shown.index + direction * step;
    if (index < 0 || index >= video.frames) return;
    if (isHere(index, shown.width, shown.solo)) continue;
    fetching += 1;
    const got = await Promise.allSettled([picture(index, shown.width), mask(index, shown.width, shown.solo)]);
    fetching -= 1;
    // what cannot be had now would be asked for without end
    return got.some(({ status }) => status === "rejected") ? undefined : prefetch();
  }
}

function isHere(index, width, solo) {
  const size = width ? `width=${width}&` : "";
  const path = `frame/${index}?${size}key=${encodeURIComponent(state.video.key)}`;
  return pictures.has(path) && (isEmpty(index) || masks.has(maskKey(index, width, solo)));
}

const GLANCE = 640;
const glanced = new WeakMap();

/** Whether the mask on screen has the current object; at a glance, which is fast, thin ones may be missed. */
export function hasMask({ glance }) {
  const image = state.shown?.mask;
  const color = currentObject()?.color.toLowerCase();
  if (!image || !color) return false;
  if (!glance) return colorsIn(image, image.width).has(color);
  if (!glanced.has(image)) glanced.set(image, colorsIn(image, Math.min(GLANCE, image.width)));
  return glanced.get(image).has(color);
}

/** The colors of a mask as "#rrggbb", looked for in a copy of this width. */
function colorsIn(image, width) {
  const height = Math.max(1, Math.round((image.height * width) / image.width));
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, width, height);
  const pixels = new Uint32Array(pen.getImageData(0, 0, width, height).data.buffer);
  const found = new Set();
  for (let at = 0; at < pixels.length; at += 1) {
    if (pixels[at] !== pixels[at - 1] && pixels[at] >>> 24 === 255) found.add(pixels[at]);
  }
  return new Set([...found].map(hex));
}

// the bytes are red, green, blue, opacity, from the lowest on
function hex(pixel) {
  const bytes = [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255];
  return `#${bytes.map((one) => one.toString(16).padStart(2, "0")).join("")}`;
}

watch(["frame", "view", "solo", "object", "states", "video", "away"], refresh);
