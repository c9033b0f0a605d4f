/** The keyboard. */

import * as actions from "./actions.js";
import { openDialog } from "./export.js";
import { rename } from "./objects.js";
import { toggle } from "./player.js";
import { fit, zoom, zoomTo } from "./stage.js";
import { say, state, update } from "./state.js";
import { cancel, holdSpace, isDrawing, sizeBrush } from "./tools.js";

const LEAP = 10;
const tool = (name) => () => update({ tool: name });
const flip = (name) => () => update({ [name]: !state[name] });
const move = (way) => (event) => actions.step(way * (event.shiftKey ? LEAP : 1));

const plain = {
  l: tool("lasso"),
  b: tool("box"),
  c: tool("click"),
  p: tool("brush"),
  e: tool("eraser"),
  "[": () => sizeBrush(-1),
  "]": () => sizeBrush(1),
  n: actions.addObject,
  f2: () => rename(state.object),
  delete: (event) => (event.shiftKey ? actions.deleteObject(state.object) : actions.clearHere()),
  backspace: actions.clearHere,
  enter: (event) => actions.track(event.shiftKey),
  escape: () => (isDrawing() ? cancel() : actions.stop()),
  i: () => actions.markHere("in"),
  o: () => actions.markHere("out"),
  arrowleft: move(-1),
  arrowright: move(1),
  ",": () => actions.step(-1),
  ".": () => actions.step(1),
  home: () => actions.step(-Infinity),
  end: () => actions.step(Infinity),
  g: (event) => actions.jump("given", event.shiftKey ? -1 : 1),
  d: (event) => actions.jump("doubtful", event.shiftKey ? -1 : 1),
  r: flip("loop"),
  h: flip("hidden"),
  u: flip("outline"),
  s: flip("solo"),
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  x: openDialog,
  "?": () => document.querySelector("#help").click(),
};

const withControl = {
  z: (event) => (event.shiftKey ? actions.redo() : actions.undo()),
  y: actions.redo,
  s: () => say(state.video ? `Everything is saved as you go, in ${state.video.folder}.` : ""),
};

function handlerOf(event) {
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) return withControl[key];
  if (event.altKey) return undefined;
  if (event.code === "Digit0") return event.shiftKey ? () => zoomTo(1 / devicePixelRatio) : fit;
  if (/^[1-9]$/.test(key)) return () => state.objects[key - 1] && actions.select(state.objects[key - 1].id);
  return plain[key];
}

// while they are held down; another N or Enter is not meant
const REPEATED = /^(arrow(left|right)|[,.[\]+=gdzy-])$/;

/** Whether an element wants the key for itself. */
function isTaken(event) {
  const { target, key } = event;
  if (document.querySelector("dialog[open]")) return true;
  if (target.closest("dialog")) return false; // it has just been closed
  if (target.matches("input[type=text], input[type=number]")) return true;
  if (target.matches("input[type=range], input[type=color], select")) return /^(Arrow|Home|End|Page| |Enter)/.test(key);
  if (target.matches("button, a, summary, input")) return key === "Enter" || key === " ";
  return target.matches("[role=radio]") && /^Arrow(Up|Down)/.test(key);
}

function down(event) {
  if (event.defaultPrevented || isTaken(event)) return;
  if (event.key === " ") {
    event.preventDefault();
    if (!event.repeat) holdSpace(true);
    return;
  }
  const handler = handlerOf(event);
  if (!handler) return;
  event.preventDefault();
  if (!event.repeat || REPEATED.test(event.key.toLowerCase())) handler(event);
}

function up(event) {
  if (event.key === " " && holdSpace(false)) toggle();
}

document.addEventListener("keydown", down);
document.addEventListener("keyup", up);
addEventListener("blur", () => holdSpace(false));
