/** Starts the page. */

import { open } from "./actions.js";
import { connect } from "./events.js";
import { state, update } from "./state.js";
import "./controls.js";
import "./keys.js";
import "./objects.js";
import "./status.js";

const file = document.querySelector("#file");
file.addEventListener("change", () => {
  open(file.files[0]);
  file.value = "";
});

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
  if (hasFile(event)) open(event.dataTransfer.files[0]);
});

// each part draws itself once, as the state is now
update({ ...state });
connect();
