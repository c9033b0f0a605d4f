/**
 * The one store of the page: everything on screen is rendered from `state`.
 *
 * @typedef {{id: number, name: string, color: string}} PageObject
 * @typedef {{key: string, name: string, frames: number, width: number, height: number, rate: number,
 *   folder: string}} Video
 * @typedef {{index: number, picture: ImageBitmap | null, mask: ImageBitmap | null, width: number, solo: number}} Shown
 */

export const state = {
  /** @type {Video | null} */ video: null,
  /** @type {PageObject[]} */ objects: [],
  /** a letter per frame, as a code: . g f d l */
  states: new Uint8Array(0),
  marks: [0, 0],
  canUndo: false,
  canRedo: false,
  /** @type {null | "track" | "export"} */ running: null,
  /** whether the network is being loaded, for which tracking waits */ loading: false,
  clicksAlone: false,
  /** @type {{name: string, title: string, default: boolean, unavailable: string | null}[]} */ results: [],
  uploads: Infinity,

  loaded: false,
  /** why the server cannot be reached; empty if it can */ away: "",
  edits: 0,
  done: 0,
  version: 0,
  /** @type {null | {back: boolean, index?: number, rate?: number, done?: number, total?: number}} */ progress: null,
  /** @type {null | {name: string, part: number}} */ upload: null,
  /** @type {{kind: "" | "good" | "end" | "error", text: string}} */ message: { kind: "", text: "" },
  /** @type {{time: Date, text: string}[]} */ problems: [],

  frame: 0,
  /** @type {Shown | null} */ shown: null,
  follow: false,
  playing: false,
  loop: false,

  object: 0,
  tool: "lasso",
  add: true,
  brush: 24,
  opacity: 0.5,
  outline: true,
  solo: false,
  hidden: false,
  view: { scale: 1, x: 0, y: 0, fit: true },
};

const watchers = [];
let changed = new Set();

/** Changes the state; what watches these keys is rendered once, after the running code. */
export function update(patch) {
  if (!changed.size) queueMicrotask(render);
  for (const key of Object.keys(patch)) changed.add(key);
  Object.assign(state, patch);
}

/** Calls `draw` whenever one of `keys` was updated. */
export function watch(keys, draw) {
  watchers.push({ keys, draw });
}

function render() {
  const now = changed;
  changed = new Set();
  for (const { keys, draw } of watchers) {
    if (!keys.some((key) => now.has(key))) continue;
    try {
      draw();
    } catch (error) {
      reportError(error);
    }
  }
}

/** "" | "prompt" | "track" | "export" */
export function busy() {
  if (state.edits) return "prompt";
  return state.running ?? "";
}

export const currentObject = () => state.objects.find((one) => one.id === state.object) ?? null;

/** Whether any frame has a mask. */
export const anyMask = () => state.states.some((code) => code !== 46);

export const stateOf = (index) => String.fromCharCode(state.states[index] ?? 46);

/** @param {"" | "good" | "end"} kind good: what to do next is said after it */
export function say(text, kind = "") {
  update({ message: { kind, text } });
}

/** Clears what was said, but not an error. */
export function hush() {
  if (state.message.text && state.message.kind !== "error") say("");
}

/** Shows an error in the status line, and keeps it in the list of problems. */
export function complain(error) {
  const text = error instanceof Error ? error.message : String(error);
  const before = state.problems.at(-1)?.text === text ? state.problems.slice(0, -1) : state.problems;
  update({ message: { kind: "error", text }, problems: [...before, { time: new Date(), text }].slice(-50) });
}
