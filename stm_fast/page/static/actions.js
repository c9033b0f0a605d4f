/** What a person can do, apart from drawing. */

import * as api from "./api.js";
import { dropAll, dropMasks, settle } from "./frames.js";
import { anyMask, complain, currentObject, hush, say, state, stateOf, update } from "./state.js";
import { fit } from "./stage.js";

let reloads = 0;

/** Takes the project from the server: at the start, and whenever it may have changed without notice. */
export async function reload() {
  const mine = ++reloads;
  const answer = await api.get("project");
  if (mine !== reloads) return; // a later one knows more
  const another = answer.video?.folder !== state.video?.folder;
  // later on, an event tells it
  if (!state.loaded && answer.network_error) complain(answer.network_error);
  dropAll();
  update({
    video: answer.video,
    objects: answer.objects,
    states: codes(answer.states),
    marks: answer.marks,
    canUndo: answer.can_undo,
    canRedo: answer.can_redo,
    running: answer.running === "network" ? null : answer.running,
    loading: answer.running === "network",
    clicksAlone: answer.clicks_alone,
    results: answer.results,
    uploads: answer.uploads ?? Infinity,
    loaded: true,
    away: "",
  });
  if (another) begin();
  selectExisting();
}

function begin() {
  const first = [...state.states].findIndex((code) => code !== 46);
  const brush = Math.max(6, Math.round((state.video?.width ?? 0) / 40));
  update({ frame: Math.max(0, first), shown: null, object: 0, brush, follow: state.running === "track" });
  fit();
}

function codes(text) {
  return Uint8Array.from(text ?? "", (letter) => letter.charCodeAt(0));
}

function selectExisting() {
  if (!currentObject()) update({ object: state.objects[0]?.id ?? 0 });
}

// a change of ours comes twice, as the answer and as an event, in either order
const counted = new Map();
const SOON_MS = 3000;

function isKnown(change, way) {
  const { frames, states, objects, marks, can_undo, can_redo } = change;
  const text = JSON.stringify([frames, states, objects, marks, can_undo, can_redo]);
  const seen = counted.get(text);
  const known = seen && seen.way !== way && performance.now() - seen.time < SOON_MS;
  if (known) counted.delete(text);
  else counted.set(text, { way, time: performance.now() });
  if (counted.size > 100) counted.delete(counted.keys().next().value);
  return known;
}

/** @param {"answer" | "event"} way how it came */
export function apply(change, way) {
  if (isKnown(change, way)) return;
  untouched = 0;
  for (const [index, letter] of Object.entries(change.states)) state.states[index] = letter.charCodeAt(0);
  dropMasks(change.objects ? null : change.frames);
  update({
    states: state.states,
    marks: change.marks,
    canUndo: change.can_undo,
    canRedo: change.can_redo,
    version: state.version + 1,
    ...(change.objects && { objects: change.objects }),
  });
  selectExisting();
}

let queue = Promise.resolve();

/** Sends an edit after those before it; the page is busy until its mask is on screen. */
export function edit(call) {
  update({ edits: state.edits + 1 });
  const result = queue.then(call).then(async (change) => {
    if (change) apply(change, "answer");
    await settle();
    return change;
  });
  queue = result.catch(complain).finally(() => update({ edits: state.edits - 1 }));
  return queue;
}

/** Moves the playhead. */
export function seek(index) {
  if (!state.video) return;
  const frame = Math.max(0, Math.min(state.video.frames - 1, Math.round(index)));
  if (frame !== state.frame) hush();
  update({ frame, follow: false });
}

export const step = (by) => {
  update({ playing: false });
  seek(state.frame + by);
};

const JUMPS = { given: "g", doubtful: "dl" };

/** To the next or previous given frame, or the next doubtful or lost one. */
export function jump(what, way) {
  if (!state.video) return;
  update({ playing: false });
  for (let index = state.frame + way; index >= 0 && index < state.video.frames; index += way) {
    if (JUMPS[what].includes(stateOf(index))) return seek(index);
  }
  const [kind, key] = what === "given" ? ["given", "G"] : ["doubtful or lost", "D"];
  say(way > 0 ? `No ${kind} frame after this one. Shift+${key} looks before it.` : `No ${kind} frame before this one.`);
}

async function unwind(path, able, done) {
  const change = await edit(async () => {
    if (!state[able]) return null;
    const answer = await api.post(path);
    if (answer.frames.length && !answer.frames.includes(state.frame)) seek(answer.frames[0]);
    return answer;
  });
  if (change) say(done, "good");
}

export const undo = () => unwind("undo", "canUndo", "Undone.");
export const redo = () => unwind("redo", "canRedo", "Done again.");

/** The current object's id; makes the first object. */
export async function ensureObject() {
  if (!currentObject()) await makeObject();
  return state.object;
}

/** An object that was made last, before any other change; 0 if there is none. */
let untouched = 0;

async function makeObject() {
  const change = await api.post("objects");
  apply(change, "answer");
  untouched = change.object.id;
  update({ object: untouched });
}

/** Adds an object; twice in a row, only one. */
export function addObject() {
  if (!state.video) return;
  edit(async () => {
    if (untouched) update({ object: untouched });
    else await makeObject();
    say(`${currentObject().name}: draw around it.`);
  });
}

export function select(id) {
  if (id !== state.object) hush();
  update({ object: id });
}

export const changeObject = (id, patch) => edit(() => api.patch(`objects/${id}`, patch));

export async function deleteObject(id) {
  const name = state.objects.find((one) => one.id === id)?.name;
  if (!name) return;
  if (await edit(() => api.remove(`objects/${id}`))) say(`${name} deleted. Ctrl+Z brings it back.`, "good");
}

export async function clearHere() {
  if (!state.shown || !currentObject()) return;
  const body = { frame: state.shown.index, object: state.object, tool: "clear" };
  if (await edit(() => api.post("prompt", body))) say("Mask cleared in this frame.", "good");
}

export const setMarks = (first, last) => edit(() => api.post("marks", { first, last }));

export function markHere(which) {
  if (!state.video) return;
  const [first, last] = state.marks;
  if (which === "in") setMarks(state.frame, Math.max(last, state.frame));
  else setMarks(Math.min(first, state.frame), state.frame);
}

export const resetMarks = () => setMarks(0, state.video.frames - 1);

export async function track(back) {
  if (!state.video || state.running) return;
  if (!state.edits && !anyMask()) return say("Draw around the object first, then track it.");
  const frame = state.shown?.index ?? state.frame;
  update({ running: "track", progress: { back }, follow: true, playing: false, message: { kind: "", text: "" } });
  try {
    await queue;
    await api.post("track", { frame, back });
  } catch (error) {
    update({ running: null, progress: null });
    complain(error);
  }
}

export async function stop() {
  update({ playing: false });
  if (!state.running) return;
  try {
    await api.post("stop");
  } catch (error) {
    complain(error);
  }
}

export async function open(file) {
  if (!file) return;
  if (state.upload) return complain(`${file.name}: wait until ${state.upload.name} is open.`);
  if (file.size > state.uploads) {
    return complain(`${file.name}: larger than the server takes. Start it with the path of the file instead.`);
  }
  update({ upload: { name: file.name, part: 0 }, playing: false });
  try {
    await api.upload(file, (part) => update({ upload: { name: file.name, part } }));
    await reload();
    say("");
  } catch (error) {
    complain(error);
  }
  update({ upload: null });
}
