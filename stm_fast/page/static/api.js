/** The server's answers. */

export class ServerError extends Error {
  /** @param {number} status 0 if the server could not be reached */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const AWAY = "The server does not answer.";

function detailOf(text, status) {
  try {
    const { detail } = JSON.parse(text);
    if (typeof detail === "string") return detail;
  } catch {
    // not of our server's making; its status says enough
  }
  return status === 403
    ? "The server refuses this page. Open the address that it printed."
    : `The server answered with error ${status}.`;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(`/api/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(AWAY, 0);
  }
  if (!response.ok) throw new ServerError(detailOf(await response.text(), response.status), response.status);
  return response;
}

async function send(method, path, body = {}) {
  const headers = { "content-type": "application/json" };
  const response = await request(path, { method, headers, body: JSON.stringify(body) });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

export const get = async (path) => (await request(path)).json();
export const post = (path, body) => send("POST", path, body);
export const patch = (path, body) => send("PATCH", path, body);
export const remove = (path) => send("DELETE", path);

/** @param {string} path @param {number} [width] across, in pixels; larger pictures are scaled down */
export async function bitmap(path, width) {
  const picture = await createImageBitmap(await (await request(path)).blob());
  if (!width || picture.width <= width) return picture;
  const resizeHeight = Math.max(1, Math.round((picture.height * width) / picture.width));
  const small = await createImageBitmap(picture, { resizeWidth: width, resizeHeight, resizeQuality: "pixelated" });
  picture.close();
  return small;
}

/** Sends a file; fetch does not tell how far it is. */
export function upload(file, tell) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("POST", `/api/video?name=${encodeURIComponent(file.name)}`);
    call.upload.onprogress = (event) => tell(event.total ? event.loaded / event.total : 0);
    call.onerror = () => reject(new ServerError(AWAY, 0));
    call.onload = () =>
      call.status < 300 ? resolve() : reject(new ServerError(detailOf(call.responseText, call.status), call.status));
    call.send(file);
  });
}

const RETRY_MS = 2000;

/**
 * Server-sent events; `opened` is called when they begin, and again after each time that the connection was lost.
 *
 * A tab that nobody looks at lets go of its connection, because browsers open only six to a server; it keeps it while
 * `needed` returns true.
 */
export function listen({ event, lost, opened, needed }) {
  let source = null;
  let wasLost = false;

  function connect() {
    source = new EventSource("/api/events");
    source.onmessage = ({ data }) => {
      event(JSON.parse(data));
      attend();
    };
    source.onopen = () => {
      opened(wasLost);
      wasLost = false;
    };
    source.onerror = () => {
      wasLost = true;
      const refused = source.readyState === EventSource.CLOSED;
      lost(refused);
      // an answer that is no stream ends the browser's own attempts
      if (refused) setTimeout(again, RETRY_MS, source);
    };
  }

  function again(refused) {
    if (source !== refused) return;
    source = null;
    attend();
  }

  function attend() {
    if (document.hidden && !needed()) {
      source?.close();
      source = null;
    } else if (!source) connect();
  }

  document.addEventListener("visibilitychange", attend);
  attend();
}
