/** What the server tells while it works. */

import { listen } from "./api.js";
import { apply, reload } from "./actions.js";
import { showFiles } from "./export.js";
import { dropMasks } from "./frames.js";
import { complain, say, state, update } from "./state.js";

const handlers = {
  change: (event) => apply(event, "event"),
  project: () => reload().catch(complain),
  network: ({ ready, error }) => {
    if (error) complain(error);
    else if (!ready) update({ progress: { ...state.progress, network: true } });
  },
  frame: tracked,
  export: ({ done, total }) => update({ running: "export", progress: { done, total } }),
  done: finished,
};

function tracked(event) {
  const { index, state: letter } = event;
  state.states[index] = letter.charCodeAt(0);
  dropMasks([index]);
  const back = state.progress?.back ?? (state.progress?.index ?? index) > index;
  update({
    states: state.states,
    running: "track",
    progress: { ...event, back },
    ...(state.follow && { frame: index }),
  });
}

function finished({ what, stopped, error, files }) {
  const { progress } = state;
  update({ running: null, progress: null, follow: false, done: state.done + 1 });
  if (error) complain(error);
  else if (what === "export") say(stopped ? "Export stopped." : "Exported. The files are in the list.", "good");
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

export function connect() {
  listen({
    event: (event) => handlers[event.kind]?.(event),
    lost: () => update({ connected: false, playing: false }),
    back: () => reload().then(() => say("Connected again.", "good"), complain),
  });
}
