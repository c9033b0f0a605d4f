/** What the server tells while it works. */

import { get, listen } from "./api.js";
import { apply, reload } from "./actions.js";
import { showFiles } from "./export.js";
import { dropMasks } from "./frames.js";
import { complain, say, state, update } from "./state.js";

const handlers = {
  change: (event) => apply(event, "event"),
  project: () => reload().catch(complain),
  network: ({ error }) => {
    update({ loading: false });
    if (error) complain(error);
  },
  frame: tracked,
  export: ({ done, total }) => update({ running: "export", progress: { done, total } }),
  done: finished,
};

function tracked(event) {
  const { index, state: letter } = event;
  state.states[index] = letter.charCodeAt(0);
  dropMasks([index]);
  const back = state.progress?.back ?? false;
  update({
    states: state.states,
    running: "track",
    progress: { ...event, back },
    ...(state.follow && { frame: index }),
  });
}

const EXPORTED = "Exported. The files are in the dialog of Export, and in the folder of the project.";

function finished({ what, stopped, error, files }) {
  const { progress } = state;
  update({ running: null, progress: null, follow: false, done: state.done + 1 });
  if (error) complain(error);
  else if (what === "export") say(stopped ? "Export stopped." : EXPORTED, "end");
  else say(trackedText(progress, stopped), "good");
  if (what === "export") showFiles(files);
}

function trackedText(progress, stopped) {
  const count = progress?.done ?? 0;
  const frames = count === 1 ? "1 frame" : `${count.toLocaleString("en")} frames`;
  if (!count) return stopped ? "Stopped." : "Nothing left to track in this direction.";
  const seconds = progress.seconds ? ` in ${progress.seconds.toFixed(1)} s` : "";
  return stopped ? `Stopped after ${frames}.` : `Tracked ${frames}${seconds}.`;
}

/** Nothing of the project is lost: it is a folder, and each edit is in it. */
async function lost(refused) {
  update({ playing: false, away: "Connection lost. Everything is saved; trying again…" });
  if (!refused) return;
  const why = await get("project").catch((error) => error);
  if (why.status === 403) update({ away: why.message });
}

export function connect() {
  listen({
    event: (event) => handlers[event.kind]?.(event),
    lost,
    // not before, or what happens between an earlier answer and the first event would go unnoticed
    opened: (again) => reload().then(() => again && say("Connected again.", "good"), complain),
    // how it ends is told only once
    needed: () => state.running !== null,
  });
}
