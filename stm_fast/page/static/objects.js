/** The list of objects: select, rename, color, delete. */

import { changeObject, deleteObject, select } from "./actions.js";
import { state, watch } from "./state.js";

const list = document.querySelector("#objects");
const template = document.querySelector("#object-row");

function draw() {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.part : null;
  list.replaceChildren(...state.objects.map(row));
  list.hidden = !state.objects.length;
  if (focused) list.querySelector(`.chosen [data-part="${focused}"]`)?.focus();
}

function row(object, at) {
  const item = template.content.firstElementChild.cloneNode(true);
  const [color, radio, remove] = ["color", "radio", "remove"].map((part) => item.querySelector(`[data-part="${part}"]`));
  const chosen = object.id === state.object;
  item.classList.toggle("chosen", chosen);
  item.dataset.id = String(object.id);
  color.value = object.color;
  color.setAttribute("aria-label", `Color of ${object.name}`);
  color.addEventListener("change", () => changeObject(object.id, { color: color.value }));
  radio.setAttribute("aria-checked", String(chosen));
  radio.tabIndex = chosen ? 0 : -1;
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
  select(state.objects[(at + way + state.objects.length) % state.objects.length].id);
}

/** Puts a text field in the place of a name. */
export function rename(id) {
  const object = state.objects.find((one) => one.id === id);
  const radio = list.querySelector(`[data-id="${id}"] [data-part="radio"]`);
  if (!object || !radio) return;
  const field = document.createElement("input");
  Object.assign(field, { type: "text", value: object.name, maxLength: 60, className: "rename" });
  field.setAttribute("aria-label", `New name of ${object.name}`);
  let ended = false;
  const end = (keep) => {
    if (ended) return;
    ended = true;
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

watch(["objects", "object"], draw);
