/** Starts the page. */

import { open } from "./actions.js";
import { connect } from "./events.js";
import { complain, state, update } from "./state.js";
import "./controls.js";
import "./keys.js";
import "./objects.js";
import "./status.js";

const file = document.querySelector("#file");
file.addEventListener("change", () => {
  open(file.files[0]);
  file.value = "";
  file.blur();
});
// keys are for the video again
file.addEventListener("cancel", () => file.blur());

let inside = 0;
const hasFile = (event) => event.dataTransfer?.types.includes("Files");
const mark = (by) => (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  inside = Math.max(0, inside + by);
  document.body.classList.toggle("dropping", inside > 0);
};
addEventListener("dragenter", mark(1));
addEventListener("dragleave", mark(-1));
addEventListener("dragover", mark(0));
addEventListener("drop", (event) => {
  mark(-Infinity)(event);
  if (!hasFile(event)) return;
  const { files, items } = event.dataTransfer;
  const [file] = files;
  if (!items[0].webkitGetAsEntry?.()?.isDirectory) open(file);
  else complain(`${file.name}: found a folder, expected a video. A folder can be opened with: stm-fast open FOLDER`);
});

// each part draws itself once, as the state is now
update({ ...state });
connect();
