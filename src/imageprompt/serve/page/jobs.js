// Jobs: sent, followed, cancelled; and what they made.
import { ApiError, call, eventsOf, remember, upload } from "./api.js";
import {
  active,
  fromRequest,
  missingPictures,
  newReference,
  set,
  setForm,
  setReference,
  shownIndex,
  state,
  toRequest,
} from "./state.js";
import { t } from "./words.js";

const HISTORY = 60;
const UNDO_MS = 6000;

/** One line that screen readers speak. */
export const say = (text) => set({ said: text });
export const toast = (text, action, run) => set({ toast: { text, action, run, at: Date.now() } });

/** Words for an error, where the server gave none. */
export function words(error) {
  if (error.type === "offline") return t("offline");
  if (error.type === "unauthorized" && !error.message) return t("noKey");
  const wait = error.wait ? ` ${t("tryIn", { seconds: error.wait })}` : "";
  return [error.message + wait, error.hint].filter(Boolean).join(". ").replace("..", ".");
}

/** Runs `work`; its failure becomes a message. Returns undefined then. */
export async function tell(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (!(error instanceof ApiError)) throw error;
    toast(words(error));
  }
}

/** The error of a request beside its field: `references.1.scale` of a muted list is a later card. */
function showError(error) {
  const found = /^(?:request\.)?references\.(\d+)(?:\.([a-z_]+))?/.exec(error.param || "");
  const card = found ? shownIndex(Number(found[1])) : -1;
  const name = found?.[2] === "image_prompt" ? "reference" : found?.[2] || "reference";
  const param =
    card >= 0 ? `references.${card}.${name}` : (error.param || "").replace(/^request\./, "");
  const place = param && document.querySelector(`[data-param="${CSS.escape(param)}"]`);
  const problem = { param: place ? param : "", message: place ? error.message : words(error) };
  set({ errors: [{ ...problem, hint: place ? error.hint : "" }], tab: "compose" });
  say(words(error));
  if (place) requestAnimationFrame(() => place.focus());
}

// ── sending ────────────────────────────────────────────────────────────────────────────────────

const newSeed = () => Math.floor(Math.random() * 2 ** 31);

/** Sends the form as it is. */
export async function run() {
  if (!state.form.fixed) setForm({ seed: newSeed() });
  set({
    errors: [],
    selected: "",
    fresh: false,
    view: state.view === "compare" ? "picture" : state.view,
  });
  if (state.view === "sweep") set({ view: "picture" });
  const job = await send(toRequest());
  if (job) set({ tab: "picture" });
  return job;
}

async function send(request) {
  try {
    const job = await call("POST", "jobs", request);
    follow(job);
    return job;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(error);
  }
}

const change = (id, changes) =>
  set({ jobs: state.jobs.map((job) => (job.id === id ? { ...job, ...changes } : job)) });

const STREAMS = 4; // a browser opens six connections to a server, and pictures need some too
let streams = 0;

/** Shows a job until it ends. Its events are kept, so that it may be listened to late. */
export function follow(job) {
  if (state.jobs.some((one) => one.id === job.id)) return;
  set({ jobs: [...state.jobs, { ...job, previews: {} }] });
  say(job.position ? t("placeInQueue", { place: job.position }) : t("sent"));
  listenToNext();
}

function listenToNext() {
  const next = streams < STREAMS && state.jobs.find((one) => !one.followed);
  if (!next) return;
  change(next.id, { followed: true });
  streams++;
  listen(next).finally(() => {
    streams--;
    set({ jobs: state.jobs.filter((one) => one.id !== next.id) });
    listenToNext();
  });
}

async function listen(job) {
  try {
    for await (const { event, data } of eventsOf(`jobs/${job.id}/events`))
      happened(job, event, data);
  } catch (error) {
    if (error.status !== 404) toast(words(error));
  }
}

function happened(job, event, data) {
  const now = state.jobs.find((one) => one.id === job.id);
  if (event === "queued") change(job.id, { position: data.position });
  if (event === "started") {
    change(job.id, { state: "running", position: null, step: 0 });
    say(t("running"));
  }
  if (event === "progress")
    change(job.id, { step: data.step, total: data.total, index: data.index });
  if (event === "preview") {
    const jpeg = `data:image/jpeg;base64,${data.jpeg}`;
    change(job.id, { previews: { ...now.previews, [data.index]: jpeg } });
  }
  if (event === "image") addPictures([madeBy(job, data)]);
  if (event === "done") say(t("ready", { count: data.images }));
  if (event === "cancelled") say(t("cancelled"));
  if (event === "failed") {
    if (state.cells.some((cell) => cell.job === job.id)) toast(words(data.error));
    else showError(data.error);
  }
  if (["failed", "cancelled"].includes(event)) markCell(job.id, { state: event });
}

export async function cancel(
  job = state.jobs.find((one) => one.state === "running") || state.jobs[0],
) {
  if (!job) return;
  change(job.id, { cancelling: true });
  await tell(() => call("DELETE", `jobs/${job.id}`));
}

export const cancelAll = () => Promise.all([...state.jobs].reverse().map(cancel));

// ── pictures ───────────────────────────────────────────────────────────────────────────────────

const madeBy = (job, image) => ({
  ...image,
  id: `${job.id}/${image.index}`,
  job: job.id,
  request: job.request,
  created: job.created,
});

function addPictures(pictures) {
  const fresh = pictures.filter((one) => !state.pictures.some((known) => known.id === one.id));
  const all = [...fresh, ...state.pictures].sort(
    (a, b) =>
      b.created - a.created || (a.job === b.job ? a.index - b.index : a.job < b.job ? 1 : -1),
  );
  set({ pictures: all });
  for (const picture of fresh) markCell(picture.job, { picture: picture.id, state: "done" });
}

/** Reads the jobs of before: pictures into the gallery, waiting jobs are followed again. */
export async function loadHistory(older = false) {
  const before = older && state.more ? `&before=${encodeURIComponent(state.more)}` : "";
  const { jobs, next } = await call("GET", `jobs?limit=${HISTORY}${before}`);
  set({ more: next });
  addPictures(jobs.flatMap((job) => job.images.map((image) => madeBy(job, image))));
  jobs
    .filter((job) => ["queued", "running"].includes(job.state))
    .reverse()
    .forEach(follow);
}

/** The picture of this id; undefined where it is gone. */
export const pictureOf = (id) => state.pictures.find((one) => one.id === id);

export const selected = () => pictureOf(state.selected);

export function select(id) {
  set({ selected: id, view: "picture", fresh: false });
}

/** Deletes the job of a picture after a while in which it can be undone. */
export function remove(picture) {
  const gone = state.pictures.filter((one) => one.job === picture.job);
  const place = state.pictures.findIndex((one) => one.job === picture.job);
  const left = state.pictures.filter((one) => one.job !== picture.job);
  const next = state.selected && (left[place] || left[place - 1])?.id;
  set({ pictures: left, selected: next || "", compare: [], view: "picture" });
  let undone = false;
  const deleteNow = (keepalive) => {
    if (!undone) call("DELETE", `jobs/${picture.job}`, null, { keepalive }).catch(() => {});
    undone = true;
    removeEventListener("pagehide", leave);
  };
  const leave = () => deleteNow(true);
  addEventListener("pagehide", leave);
  setTimeout(() => deleteNow(false), UNDO_MS);
  toast(t("deleted", { count: gone.length }), t("undo"), () => {
    if (undone) return;
    undone = true;
    removeEventListener("pagehide", leave);
    addPictures(gone);
    set({ selected: picture.id });
  });
}

/** "Use this": the form becomes what made the picture. */
export function reuse(picture) {
  if (picture.request.workflow) return set({ dialog: { name: "workflows" } });
  fromRequest(picture.request, picture.index);
  set({ tab: "compose" });
  toast(t("restored"));
  askForMissing();
}

// ── references and recipes ─────────────────────────────────────────────────────────────────────

/** Sends a picture and returns its hash; undefined where the server refuses it. */
export async function keepPicture(file) {
  return tell(async () => {
    const { hash } = await upload(file);
    remember(hash, file);
    return hash;
  });
}

export async function addReferences(files) {
  for (const file of files) {
    const hash = await keepPicture(file);
    if (hash) {
      setForm({ references: [...state.form.references, newReference({ pictures: [hash] })] });
      say(t("referenceAdded", { number: state.form.references.length }));
    }
  }
  set({ tab: "compose" });
}

/** Restores all that made a PNG. Returns false for a picture without a recipe. */
export async function restore(file) {
  let found;
  try {
    const headers = { "Content-Type": "image/png" };
    found = await call("POST", "recipe", file, { headers });
  } catch (error) {
    if (["no_recipe", "invalid_picture"].includes(error.type)) return false;
    toast(words(error));
    return true;
  }
  fromRequest(found.request);
  set({ tab: "compose", panel: state.panel });
  toast([t("restored"), ...found.warnings].join(" "), t("asReference"), async () =>
    addReferences([file]),
  );
  if (found.missing.length) set({ dialog: { name: "missing", ...found } });
  return true;
}

/** Files that were dropped or pasted: a recipe is restored, any other picture is a reference. */
export async function takeFiles(files) {
  const pictures = files.filter((file) => /^image\/(png|jpeg|webp)$/.test(file.type));
  if (!pictures.length) return files.length && toast(t("notAPicture"));
  if (pictures.length === 1 && pictures[0].type === "image/png" && (await restore(pictures[0])))
    return;
  await addReferences(pictures);
}

/** Of a job whose references the server has deleted since. */
async function askForMissing() {
  const missing = (await missingPictures()).map(([, hash]) => ({ hash, name: "" }));
  if (missing.length) set({ dialog: { name: "missing", missing, tokens: {} } });
}

/** Gives a missing picture; only the very file will do. Returns whether it was it. */
export async function giveMissing(entry, file) {
  const hash = await keepPicture(file);
  if (hash !== entry.hash) return !hash;
  const missing = state.dialog.missing.filter((one) => one.hash !== entry.hash);
  set({ dialog: missing.length ? { ...state.dialog, missing } : null });
  setForm({ references: [...state.form.references] });
  return true;
}

/** Uses the tokens in the PNG for the references whose pictures are missing. */
export function useTokens() {
  const { missing, tokens } = state.dialog;
  for (const entry of missing) {
    const index = Number(/^references\.(\d+)/.exec(entry.param || "")?.[1]);
    const one = state.form.references[index];
    if (!one || !tokens[index]) continue;
    const rest = Object.fromEntries(
      Object.entries(one.rest).filter(([name]) => !ENCODING.includes(name)),
    );
    setReference(one.id, {
      tokens: tokens[index],
      pictures: [],
      framing: "",
      fusion: "",
      face: "",
      rest,
    });
  }
  set({ dialog: null });
}

const ENCODING = [
  "reference",
  "framing",
  "fusion",
  "weights",
  "noise",
  "noise_seed",
  "reference_mask",
  "negative_reference",
  "subtract_text",
  "subtract_strength",
  "fusion_text",
  "face_strength",
];

// ── sweep ──────────────────────────────────────────────────────────────────────────────────────

function markCell(job, changes) {
  if (!state.cells.some((cell) => cell.job === job)) return;
  set({ cells: state.cells.map((cell) => (cell.job === job ? { ...cell, ...changes } : cell)) });
}

/** One picture for each value and seed. `what` is a card's id, or "guidance". */
export async function sweep({ what, from, to, count, seeds }) {
  const values = Array.from({ length: count }, (_, step) =>
    Number((from + ((to - from) * step) / Math.max(1, count - 1)).toFixed(2)),
  );
  const index = active().findIndex((one) => one.id === what);
  const cells = [];
  for (let row = 0; row < seeds; row++) {
    for (const value of values) cells.push({ value, seed: state.form.seed + row, state: "queued" });
  }
  set({ cells, errors: [], sweep: { what, values, index } });
  for (const cell of cells) {
    const request = { ...toRequest(), seed: cell.seed, num_images: 1 };
    if (index < 0) request.guidance_scale = cell.value;
    else
      request.references = request.references.map((one, at) =>
        at === index ? { ...one, scale: cell.value } : one,
      );
    const job = await send(request);
    if (!job) break;
    set({ cells: state.cells.map((one) => (one === cell ? { ...one, job: job.id } : one)) });
    const ready = state.pictures.find((one) => one.job === job.id);
    if (ready) markCell(job.id, { picture: ready.id, state: "done" });
  }
}

export async function loadStyles() {
  const query = state.search ? `?search=${encodeURIComponent(state.search)}` : "";
  const found = await tell(() => call("GET", `styles${query}`));
  if (found) set({ styles: found.styles, scores: found.scores || {}, resembles: "" });
}
