// The HTTP API: calls, events, and pictures that may need a key.
import { useEffect, useState } from "./vendor/preact-htm.js";

const ROOT = new URL("api/v1/", document.baseURI);
const KEY = "imageprompt.key";
let key = sessionStorage.getItem(KEY) || "";
let askForKey = async () => "";
let asking = null;

/** `ask(wrong)` shows a dialog and resolves with a key, or "" where the user gives none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export class ApiError extends Error {
  constructor(error, status) {
    super(error.message);
    Object.assign(this, { type: error.type, param: error.param, hint: error.hint || "", status });
  }
}

/** Answers of the server as JSON; a Response where `raw`, also of an error where it is "any". Throws
 * ApiError. */
export async function call(method, path, body, { headers = {}, raw, signal, keepalive } = {}) {
  const plain = body && !(body instanceof Blob);
  const used = key;
  const response = await fetch(new URL(path, ROOT), {
    method,
    signal,
    keepalive,
    body: plain ? JSON.stringify(body) : body,
    headers: {
      ...(plain && { "Content-Type": "application/json" }),
      ...(key && { Authorization: `Bearer ${key}` }),
      ...headers,
    },
  }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ type: "offline", message: "", param: null }, 0);
  });
  if (response.status === 401 && !keepalive) {
    if (used === key) await newKey();
    return call(method, path, body, { headers, raw, signal });
  }
  if (!response.ok && raw !== "any") throw await failure(response);
  if (raw) return response;
  return response.status === 204 ? null : response.json();
}

/** One dialog for all the calls that were refused. */
async function newKey() {
  asking ??= askForKey(Boolean(key)).finally(() => (asking = null));
  const given = await asking;
  if (!given) throw new ApiError({ type: "unauthorized", message: "", param: null }, 401);
  key = given;
  sessionStorage.setItem(KEY, key);
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const error = body.error || { type: "internal", message: `HTTP ${response.status}` };
  error.wait = Number(response.headers.get("Retry-After")) || 0;
  return Object.assign(new ApiError(error, response.status), { wait: error.wait });
}

/** Events of a job as {event, data}, read again from the last one where the line breaks. */
export async function* eventsOf(path, signal) {
  let last = "";
  for (let failed = 0; ;) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await call("GET", path, null, { headers, raw: true, signal });
      for await (const { id, event, data } of read(response.body)) {
        failed = 0;
        last = id || last;
        yield { event, data: JSON.parse(data) };
        if (["done", "failed", "cancelled"].includes(event)) return;
      }
    } catch (error) {
      if (error.name === "AbortError" || (error.status >= 400 && error.status < 500)) throw error;
    }
    if (++failed > 8) throw new ApiError({ type: "offline", message: "", param: null }, 0);
    await new Promise((wake) => setTimeout(wake, Math.min(8000, 300 * 2 ** failed)));
  }
}

async function* read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r", "");
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const found = {};
      for (const line of text.slice(0, end).split("\n")) {
        const [, name, content] = /^(\w+): ?(.*)$/.exec(line) || [];
        if (name) found[name] = content;
      }
      if (found.data) yield found;
    }
  }
}

/** Keeps a picture on the server: {hash, width, height}. */
export function upload(blob) {
  const type = /^image\//.test(blob.type) ? blob.type : "image/png";
  return call("POST", "uploads", blob, { headers: { "Content-Type": type } });
}

// ── pictures ───────────────────────────────────────────────────────────────────────────────────

const local = new Map(); // path -> object URL; for pictures of this page and those behind a key

/** Shows `blob` for the upload of this hash without asking the server. */
export function remember(hash, blob) {
  const path = `uploads/${hash}`;
  if (!local.has(path)) local.set(path, URL.createObjectURL(blob));
}

/** The URL of a picture of the API; null where it is not there. */
export async function pictureUrl(path) {
  path = path.replace(/^\/?api\/v1\//, "");
  if (local.has(path)) return local.get(path);
  if (!key && !path.startsWith("uploads/")) return new URL(path, ROOT).href;
  try {
    const response = await call("GET", path, null, { raw: true });
    local.set(path, URL.createObjectURL(await response.blob()));
    return local.get(path);
  } catch {
    return null;
  }
}

/** The URL once it is known: undefined at first, null where the picture is gone. */
export function usePicture(path) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let current = true;
    if (path) pictureUrl(path).then((url) => current && setFound({ path, url }));
    return () => (current = false);
  }, [path]);
  return found.path === path ? found.url : undefined;
}

/** A picture of the API, decoded, for canvases. */
export async function imageOf(path) {
  const image = new Image();
  image.src = (await pictureUrl(path)) || "";
  await image.decode();
  return image;
}
