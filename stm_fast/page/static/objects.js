/** The list of objects: select, rename, color, delete. */

import { changeObject, deleteObject, select } from "./actions.js";
import { state, watch } from "./state.js";

const list = document.querySelector("#objects");
const template = document.querySelector("#object-row");

let renaming = false;

function draw() {
  // what another tab changes waits until the name is typed
  if (renaming) return;
  const part = list.contains(document.activeElement) ? document.activeElement.dataset.part : null;
  list.replaceChildren(...state.objects.map(row));
  list.hidden = !state.objects.length;
  mark();
  if (part) list.querySelector(`.chosen [data-part="${part}"]`)?.focus();
}

/** Marks the current object; the rows stay, as a double click has to find the same one twice. */
function mark() {
  for (const item of list.children) {
    const chosen = Number(item.dataset.id) === state.object;
    const radio = partOf(item, "radio");
    item.classList.toggle("chosen", chosen);
    radio?.setAttribute("aria-checked", String(chosen));
    if (radio) radio.tabIndex = chosen ? 0 : -1;
  }
}

const partOf = (item, part) => item.querySelector(`[data-part="${part}"]`);

function row(object, at) {
  const item = template.content.firstElementChild.cloneNode(true);
  const [color, radio, remove] = ["color", "radio", "remove"].map((part) => partOf(item, part));
  item.dataset.id = String(object.id);
  color.value = object.color;
  color.setAttribute("aria-label", `Color of ${object.name}`);
  color.addEventListener("change", () => {
    // as of a button that was clicked, see controls.js
    if (!color.matches(":focus-visible")) color.blur();
    changeObject(object.id, { color: color.value });
  });
  radio.querySelector(".name").textContent = object.name;
  radio.querySelector("kbd").textContent = at < 9 ? String(at + 1) : "";
  radio.addEventListener("click", () => select(object.id));
  radio.addEventListener("dblclick", () => rename(object.id));
  radio.addEventListener("keydown", walk);
  remove.setAttribute("aria-label", `Delete ${object.name}`);
  remove.addEventListener("click", () => deleteObject(object.id));
  return item;
}

/** Arrow keys choose, as in every group of radio buttons. */
function walk(event) {
  const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const at = state.objects.findIndex((one) => one.id === state.object);
  const { id } = state.objects[(at + way + state.objects.length) % state.objects.length];
  select(id);
  list.querySelector(`[data-id="${id}"] [data-part="radio"]`).focus();
}

/** Puts a text field in the place of a name. */
export function rename(id) {
  const object = state.objects.find((one) => one.id === id);
  const radio = list.querySelector(`[data-id="${id}"] [data-part="radio"]`);
  if (!object || !radio) return;
  const field = document.createElement("input");
  Object.assign(field, { type: "text", value: object.name, maxLength: 60, className: "rename" });
  field.setAttribute("aria-label", `New name of ${object.name}`);
  renaming = true;
  const end = (keep) => {
    if (!renaming) return;
    renaming = false;
    const name = field.value.trim();
    if (keep && name && name !== object.name) changeObject(id, { name });
    draw();
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") end(false);
  });
  field.addEventListener("blur", () => end(true));
  radio.replaceWith(field);
  field.select();
}

watch(["objects"], draw);
watch(["object"], mark);
