/** The line that says what happens, and what to do next. */

import { busy, currentObject, state, stateOf, watch } from "./state.js";

const line = document.querySelector("#status");
const bars = document.querySelectorAll("#progress, #upload-progress");
const invitation = document.querySelector("#invitation");
const button = document.querySelector("#problems-button");
const list = document.querySelector("#problems");

const percent = (part) => `${Math.floor(part * 100)} %`;

function happening() {
  const { upload, progress, running } = state;
  if (state.away) return state.away;
  if (upload?.part < 1) return `Copying ${upload.name}: ${percent(upload.part)}`;
  if (upload) return `Opening ${upload.name}…`;
  if (state.edits && state.message.kind !== "error") return "Working…";
  if (running === "track") return tracking(progress);
  if (running !== "export") return "";
  return progress?.total ? `Exporting: ${percent(progress.done / progress.total)}` : "Exporting…";
}

function tracking(progress) {
  const way = progress?.back ? "backward" : "forward";
  if (progress?.index === undefined) return `Tracking ${way}: ${state.loading ? "loading the network" : "starting"}…`;
  const { index, rate, done, total } = progress;
  const left = rate > 0 ? `, ${duration((total - done) / rate)} left` : "";
  return `Tracking ${way}: frame ${index}, ${rate.toFixed(1)} frames/s${left}. Esc stops.`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const has = (letter) => state.states.includes(letter.charCodeAt(0));

/** What a person may want to do next. */
function advice() {
  if (!state.loaded) return "";
  if (!state.video) return "Choose a video, or drop one here.";
  const name = state.objects.length > 1 ? currentObject()?.name : "the object";
  if (!has("g")) return state.clicksAlone ? "Draw around the object, or click it." : "Draw around the object.";
  if (!["f", "d", "l"].some(has)) return "Click what is missing, right-click what is too much. Enter tracks forward.";
  const here = stateOf(state.frame);
  if (here === "d") return "This frame is doubtful. Correct it with clicks, then Enter tracks on from here.";
  if (here === "l") return `Lost here. Draw around ${name} if it is in sight, then Enter tracks on from here.`;
  if (has("d") || has("l")) return "D goes to the next doubtful frame. Correct it, then Enter tracks on from there.";
  if (here === ".") return `No mask here yet: Enter tracks on, or draw around ${name}.`;
  return "Correct any frame with clicks; Enter tracks on from there. Then export.";
}

// so that it can be read, and read aloud
const LEAST_MS = 300;
let written = 0;

function draw() {
  drawBars();
  const onlyTracks = state.running === "track" && state.progress?.done > 1 && !state.away && !state.edits;
  if (onlyTracks && performance.now() - written < LEAST_MS) return;
  // a screen reader says that it has begun and how it ended, not each frame
  line.setAttribute("aria-live", state.running && state.progress?.done > 1 && !state.away ? "off" : "polite");
  written = performance.now();
  const { kind, text } = state.message;
  const now = happening();
  const alone = text && kind !== "good";
  line.textContent = now || (alone ? text : [text, advice()].filter(Boolean).join(" "));
  line.dataset.kind = state.away ? "error" : now ? "busy" : kind;
}

function drawBars() {
  const { upload, progress, running } = state;
  const part = upload ? upload.part : running && progress?.total ? progress.done / progress.total : null;
  for (const one of bars) {
    one.hidden = !upload && !running;
    if (part === null) one.removeAttribute("value");
    else one.value = part;
  }
}

function drawProblems() {
  const { problems } = state;
  button.hidden = !problems.length;
  button.textContent = problems.length === 1 ? "1 message" : `${problems.length} messages`;
  list.replaceChildren(
    ...problems.toReversed().map(({ time, text }) => {
      const item = document.createElement("li");
      const when = document.createElement("time");
      when.textContent = time.toLocaleTimeString();
      item.append(when, text);
      return item;
    }),
  );
}

function drawInvitation() {
  invitation.hidden = !state.video || has("g") || state.edits > 0;
}

function mark() {
  const { dataset } = document.body;
  if (state.loaded) dataset.ready = !state.video ? "empty" : state.shown ? "1" : "";
  dataset.busy = busy();
  dataset.done = String(state.done);
  dataset.version = String(state.version);
}

const happenings = ["away", "loading", "upload", "edits", "running", "progress"];
watch(["message", ...happenings, "loaded", "video", "states", "frame", "object", "objects"], draw);
watch(["problems"], drawProblems);
watch(["video", "states", "edits"], drawInvitation);
watch(["loaded", "video", "shown", "edits", "running", "done", "version"], mark);
