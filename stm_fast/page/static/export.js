/** The export dialog: what is to be written, how far it is, and the files. */

import { get, post } from "./api.js";
import { stop } from "./actions.js";
import { complain, say, state, update, watch } from "./state.js";

const dialog = document.querySelector("#export-dialog");
const kinds = document.querySelector("#kinds");
const start = document.querySelector("#export-start");
const halt = document.querySelector("#export-stop");
const bar = document.querySelector("#export-progress");
const range = document.querySelector("#export-range");
const problem = document.querySelector("#export-problem");
const files = document.querySelector("#results");
const folder = document.querySelector("#folder");
const outcome = document.querySelector("#outcome");

export async function openDialog() {
  if (!state.video || dialog.open) return;
  update({ playing: false });
  say("");
  drawKinds();
  dialog.showModal();
  try {
    const { folder: path, files: list } = await get("results");
    folder.textContent = path;
    showFiles(list);
  } catch (error) {
    complain(error);
  }
}

function drawKinds() {
  if (kinds.children.length === state.results.length) return;
  kinds.replaceChildren(...state.results.map(choice));
}

function choice({ name, title, default: chosen, unavailable }) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  const checked = chosen && !unavailable;
  Object.assign(box, { type: "checkbox", name: "write", value: name, checked, disabled: !!unavailable });
  box.addEventListener("change", draw);
  const text = document.createElement("span");
  text.textContent = title;
  label.append(box, text);
  if (unavailable) {
    const why = document.createElement("small");
    why.textContent = unavailable;
    text.append(why);
  }
  return label;
}

const chosen = () => [...kinds.querySelectorAll("input:checked")].map((box) => box.value);

async function begin() {
  if (state.running || !chosen().length) return;
  update({ running: "export", progress: { done: 0, total: 0 }, message: { kind: "", text: "" } });
  showFiles([]);
  try {
    await post("export", { write: chosen() });
  } catch (error) {
    update({ running: null, progress: null });
    complain(error);
  }
}

/** @param {{name: string, bytes: number, files: number}[]} list */
export function showFiles(list) {
  files.replaceChildren(...(list ?? []).map(link));
  outcome.hidden = !list?.length;
}

function link({ name, bytes, files: count }) {
  const item = document.createElement("li");
  const anchor = document.createElement("a");
  anchor.href = `/api/results/${encodeURIComponent(name)}`;
  // files have endings, folders have none
  const isFolder = !name.includes(".");
  anchor.download = isFolder ? `${name}.zip` : name;
  anchor.textContent = anchor.download;
  const size = document.createElement("span");
  const inside = isFolder ? `${count.toLocaleString("en")} ${count === 1 ? "file" : "files"}, ` : "";
  size.textContent = inside + sizeText(bytes);
  item.append(anchor, size);
  return item;
}

function sizeText(bytes) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let at = 0;
  for (; bytes >= 1000 && at < units.length - 1; at += 1) bytes /= 1000;
  return `${at && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

function draw() {
  const exporting = state.running === "export";
  const { done = 0, total = 0 } = (exporting && state.progress) || {};
  start.disabled = !!state.running || !chosen().length;
  start.hidden = exporting;
  halt.hidden = !exporting;
  bar.hidden = !exporting;
  if (total) bar.value = done / total;
  else bar.removeAttribute("value");
  const [first, last] = state.marks;
  range.textContent = `Frames ${first} to ${last}, as marked on the timeline.`;
  if (state.running === "track") range.textContent += " Wait until tracking has ended.";
  problem.textContent = state.message.kind === "error" ? state.message.text : "";
}

start.addEventListener("click", begin);
halt.addEventListener("click", stop);
watch(["running", "progress", "marks", "message", "results", "video"], draw);
watch(["results"], drawKinds);
