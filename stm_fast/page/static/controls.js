/** Buttons, sliders and the header: each does one action and shows one part of the state. */

import * as actions from "./actions.js";
import { openDialog } from "./export.js";
import { toggle } from "./player.js";
import { fit, zoom, zoomTo } from "./stage.js";
import { anyMask, state, update, watch } from "./state.js";
import { recolor, time } from "./timeline.js";
import { mostBrush } from "./tools.js";

const $ = (id) => document.getElementById(id);
const tools = ["lasso", "box", "click", "brush", "eraser"];

const clicks = {
  "track-forward": () => actions.track(false),
  "track-back": () => actions.track(true),
  stop: actions.stop,
  undo: actions.undo,
  redo: actions.redo,
  "add-object": actions.addObject,
  clear: actions.clearHere,
  play: toggle,
  "step-back": () => actions.step(-1),
  "step-forward": () => actions.step(1),
  "next-given": () => actions.jump("given", 1),
  "next-doubtful": () => actions.jump("doubtful", 1),
  "zoom-in": () => zoom(1.25),
  "zoom-out": () => zoom(0.8),
  "zoom-fit": fit,
  "zoom-full": () => zoomTo(1 / devicePixelRatio),
  export: openDialog,
  help: () => $("help-dialog").showModal(),
  theme: switchTheme,
  "add-mode": () => update({ add: true }),
  "remove-mode": () => update({ add: false }),
};
const switches = { outline: "outline", solo: "solo", hide: "hidden", loop: "loop" };

for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", () => act());
for (const [id, key] of Object.entries(switches)) $(id).addEventListener("click", () => update({ [key]: !state[key] }));
for (const name of tools) $(`tool-${name}`).addEventListener("click", () => update({ tool: name }));
$("opacity").addEventListener("input", ({ target }) => update({ opacity: target.value / 100 }));
$("brush-size").addEventListener("input", ({ target }) => update({ brush: Number(target.value) }));
$("frame-number").addEventListener("change", ({ target }) => {
  if (target.value) actions.step(Number(target.value) - state.frame);
  target.blur();
  drawPlace();
});

// after a click, Enter and Space are for the video again; whoever came by Tab stays on the button
function blurClicked({ target, detail }) {
  const control = target.closest?.("button, input[type=range], summary");
  if (detail > 0 && control && !control.closest("dialog")) document.activeElement?.blur();
}
// before the button's own listener, as a dialog that closes gives the focus back
document.addEventListener("click", blurClicked, { capture: true });

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", ({ target }) => {
    if (target === dialog || target.closest("[data-close]")) dialog.close();
  });
}

function drawTools() {
  for (const name of tools) $(`tool-${name}`).setAttribute("aria-pressed", String(state.tool === name));
  const paints = state.tool === "brush" || state.tool === "eraser";
  $("brush-options").hidden = !paints;
  $("click-options").hidden = paints;
  $("add-mode").setAttribute("aria-pressed", String(state.add));
  $("remove-mode").setAttribute("aria-pressed", String(!state.add));
}

function drawBrush() {
  $("brush-size").max = String(mostBrush());
  $("brush-size").value = String(state.brush);
  $("brush-value").textContent = `${state.brush} px`;
}

function drawSwitches() {
  for (const [id, key] of Object.entries(switches)) $(id).setAttribute("aria-pressed", String(state[key]));
  $("opacity").value = String(Math.round(state.opacity * 100));
  $("opacity-value").textContent = `${Math.round(state.opacity * 100)} %`;
  $("play").setAttribute("aria-pressed", String(state.playing));
  $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
}

const NEED_VIDEO = [
  ...["add-object", "play", "step-back", "step-forward", "loop", "frame-number", "next-given", "next-doubtful"],
  ...["zoom-in", "zoom-out", "zoom-fit", "zoom-full"],
];

function drawAbility() {
  const { video, running } = state;
  $("undo").disabled = !state.canUndo;
  $("redo").disabled = !state.canRedo;
  $("export").disabled = !video || !anyMask();
  for (const id of ["track-forward", "track-back"]) {
    $(id).disabled = !video || !anyMask() || !!running;
    $(id).hidden = !!running;
  }
  $("stop").hidden = !running;
  $("clear").disabled = !state.object;
  for (const id of NEED_VIDEO) $(id).disabled = !video;
}

function drawVideo() {
  const { video } = state;
  document.body.classList.toggle("empty", state.loaded && !video);
  $("welcome").hidden = !state.loaded || !!video;
  document.title = video ? `${video.name} – stm_fast` : "stm_fast";
  $("clip-name").textContent = video?.name ?? "";
  $("clip-name").title = video?.folder ?? "";
  $("clip-size").textContent = video ? sizeText(video) : "";
  $("frame-number").max = String((video?.frames ?? 1) - 1);
}

function sizeText({ width, height, frames, rate }) {
  return `${width} × ${height} · ${frames.toLocaleString("en")} frames · ${rateText(rate)}`;
}

const rateText = (rate) => (rate ? `${Number(rate.toFixed(2))} fps` : "no frame rate");

function drawPlace() {
  const { video, frame, view } = state;
  const field = $("frame-number");
  if (document.activeElement !== field) field.value = String(frame);
  $("frame-last").textContent = video ? `/ ${video.frames - 1}` : "";
  $("frame-time").textContent = video ? time(frame) : "";
  $("zoom-value").textContent = video ? `${Math.round(view.scale * devicePixelRatio * 100)} %` : "";
}

const STATES = { given: 103, found: 102, doubtful: 100, lost: 108 };

function drawCounts() {
  const counts = new Uint32Array(256);
  for (const code of state.states) counts[code] += 1;
  for (const [name, code] of Object.entries(STATES)) $(`count-${name}`).textContent = counts[code].toLocaleString("en");
}

/** The theme of the system, unless one was chosen here. */
function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  localStorage.setItem("theme", now === "dark" ? "light" : "dark");
  applyTheme();
}

function applyTheme() {
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  recolor();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
applyTheme();
watch(["tool", "add"], drawTools);
watch(["brush", "video"], drawBrush);
watch(["outline", "solo", "hidden", "loop", "opacity", "playing"], drawSwitches);
watch(["video", "running", "states", "canUndo", "canRedo", "object"], drawAbility);
watch(["video", "loaded"], drawVideo);
watch(["video", "frame", "view"], drawPlace);
watch(["states"], drawCounts);
