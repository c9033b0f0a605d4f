/** Playing at the true rate; frames that come too late are skipped. */

import { settle } from "./frames.js";
import { seek } from "./actions.js";
import { state, update, watch } from "./state.js";

const DEFAULT_RATE = 25;

/** The frames to be played: those between the marks, or all if the playhead is outside. */
function range() {
  const [first, last] = state.marks;
  const within = state.frame >= first && state.frame <= last;
  return within ? [first, last] : [0, state.video.frames - 1];
}

export function toggle() {
  if (!state.video || state.video.frames < 2) return;
  update({ playing: !state.playing });
}

let turn = 0;

async function play() {
  if (!state.playing) return;
  const me = ++turn;
  const [first, last] = range();
  let begin = state.frame >= last ? first : state.frame;
  seek(begin);
  await settle();
  let start = performance.now();
  const next = (now) => {
    if (!state.playing || me !== turn) return;
    let index = begin + Math.floor(((now - start) / 1000) * (state.video.rate || DEFAULT_RATE));
    if (index > last && state.loop) [begin, start, index] = [first, now, first];
    if (index !== state.frame) seek(Math.max(begin, Math.min(last, index)));
    if (index > last) update({ playing: false });
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
}

watch(["playing"], play);
