// What the page knows: the form, jobs, pictures; and how the form becomes a request and back.
import { call, pictureUrl } from "./api.js";

const SAVED = "imageprompt.form.1";
const LOOKS = "imageprompt.looks";
let redraw = () => {};
let waiting = false;

/** A card of one reference. `rest` keeps the fields of a request that the card does not show. */
export const newReference = (more = {}) => ({
  id: crypto.randomUUID?.() ?? String(Math.random()),
  pictures: [],
  style: "",
  tokens: "",
  adapter: "",
  scale: null,
  preset: "",
  composition: null,
  boost: null,
  start: 0,
  end: 1,
  curve: "constant",
  custom: "",
  mask: "",
  muted: false,
  face: "",
  framing: "",
  fusion: "",
  rest: {},
  ...more,
});

const newForm = () => ({
  references: [],
  prompt: "",
  negative: "",
  size: null,
  seed: 1,
  fixed: false,
  steps: null,
  guidance: null,
  eta: null,
  count: 1,
  start: "",
  strength: null,
  inpaint: "",
  rest: {},
});

const read = (key) => {
  try {
    return JSON.parse(localStorage.getItem(key)) || {};
  } catch {
    return {};
  }
};

export const looks = { theme: "", language: "", ...read(LOOKS) };

export const state = {
  form: { ...newForm(), ...read(SAVED) },
  server: null, // {base, limits, adapters, presets, scale}
  api: null, // the OpenAPI document, on its page
  offline: "",
  jobs: [], // those that wait or run, oldest first
  pictures: [], // {id, job, index, url, width, height, seed, request}, newest first
  more: null, // the job before which older ones begin
  styles: [],
  search: "",
  scores: {},
  resembles: "",
  view: "picture", // paint, compare, sweep
  fresh: false, // an empty canvas, though there are pictures
  selected: "", // the id of a picture; "" follows the job that runs
  paint: null, // {title, hash, hue, over, onDone}
  compare: [],
  sweep: null,
  cells: [],
  panel: "gallery", // library
  tab: "compose", // phone: picture, gallery, library
  dialog: null,
  toast: null,
  said: "",
  errors: [], // {param, message, hint}
  showMasks: false,
  dropping: false,
};

state.form.references = state.form.references.map((one) => newReference(one));

export function onChange(draw) {
  redraw = draw;
}

/** Changes the state and draws the page again, once for all changes of this moment. */
export function set(changes) {
  Object.assign(state, changes);
  if (waiting) return;
  waiting = true;
  queueMicrotask(() => {
    waiting = false;
    redraw();
  });
}

let saving;
export function setForm(changes) {
  set({ form: { ...state.form, ...changes } });
  clearTimeout(saving);
  saving = setTimeout(save, 300);
}

export function save() {
  localStorage.setItem(SAVED, JSON.stringify(state.form));
}
addEventListener("pagehide", save);

export function setReference(id, changes) {
  setForm({
    references: state.form.references.map((one) => (one.id === id ? { ...one, ...changes } : one)),
  });
}

export function setLooks(changes) {
  Object.assign(looks, changes);
  localStorage.setItem(LOOKS, JSON.stringify(looks));
  set({});
}

/** The user changed a field: what the server said of it is past. */
export function forget(param) {
  if (param && state.errors.some((error) => error.param === param)) {
    set({ errors: state.errors.filter((error) => error.param !== param) });
  }
}

export function clearForm() {
  setForm(newForm());
  set({ errors: [], selected: "", view: "picture", fresh: true });
}

// ── what the server has ────────────────────────────────────────────────────────────────────────

export async function loadServer() {
  const [bases, adapters, presets] = await Promise.all(
    ["bases", "adapters", "presets"].map((path) => call("GET", path)),
  );
  set({
    offline: "",
    server: {
      base: bases.bases.find((one) => one.default) || bases.bases[0],
      limits: bases.limits,
      adapters: adapters.adapters,
      presets: presets.presets,
      scale: presets.scale,
    },
  });
}

export const size = () =>
  state.form.size || [state.server?.base.width || 512, state.server?.base.height || 512];
export const steps = () => state.form.steps || state.server?.base.steps || 20;
export const active = () => state.form.references.filter((one) => !one.muted && hasSource(one));
export const hasSource = (one) => one.pictures.length > 0 || one.style || one.tokens;

// ── form -> request ────────────────────────────────────────────────────────────────────────────

const uploadOf = (hash) => `upload:${hash}`;
const hashOf = (text) => (typeof text === "string" && /^upload:/.test(text) ? text.slice(7) : "");

/** Cut, not rounded: step i of n is on where start <= i/n < end. */
const fraction = (value) => Math.floor(value * 1e4 + 1e-6) / 1e4;

export function scheduleText({ start, end, curve, custom }) {
  if (custom) return custom;
  const whole = start <= 0 && end >= 1;
  const window = whole && curve !== "constant" ? "" : `${fraction(start)}-${fraction(end)}`;
  return whole && curve === "constant"
    ? ""
    : `${window} ${curve === "constant" ? "" : curve}`.trim();
}

function referenceToRequest(one) {
  const made = { ...one.rest };
  const put = (name, value) => {
    if (value !== "" && value !== null && value !== undefined) made[name] = value;
  };
  if (one.tokens) made.image_prompt = one.tokens;
  else if (one.style) made.style = one.style;
  else made.reference = one.pictures.map(uploadOf);
  put("adapter", one.adapter);
  put("scale", one.scale ?? state.server?.scale);
  put("preset", one.preset);
  const reads = state.server?.presets.find((preset) => preset.name === one.preset)?.reads;
  if (reads) put(reads, one[reads]);
  put("schedule", scheduleText(one));
  put("mask", one.mask && uploadOf(one.mask));
  if (one.pictures.length && !one.tokens) {
    put("face", one.face);
    put("framing", one.framing);
    put("fusion", one.pictures.length > 1 ? one.fusion : "");
  }
  return made;
}

/** The request of the form. `change(request)` may alter it, as a sweep does. */
export function toRequest() {
  const { form } = state;
  const made = { ...form.rest, prompt: form.prompt };
  const put = (name, value) => {
    if (value !== "" && value !== null) made[name] = value;
  };
  put("negative_prompt", form.negative);
  made.references = active().map(referenceToRequest);
  put("init_image", form.start && uploadOf(form.start));
  if (form.start) {
    put("strength", form.strength);
    put("inpaint_mask", form.inpaint && uploadOf(form.inpaint));
  }
  put("seed", form.seed);
  put("num_images", form.count);
  put("steps", form.steps);
  put("guidance_scale", form.guidance);
  put("eta", form.eta);
  put("size", form.size);
  return made;
}

/** The card of each reference of a request: muted ones have none. */
export const shownIndex = (index) => state.form.references.indexOf(active()[index]);

// ── request -> form ────────────────────────────────────────────────────────────────────────────

const SHOWN = [
  "reference",
  "style",
  "image_prompt",
  "adapter",
  "scale",
  "preset",
  "composition",
  "boost",
  "schedule",
  "mask",
  "face",
  "framing",
  "fusion",
];

function referenceFromRequest(one) {
  const rest = Object.fromEntries(Object.entries(one).filter(([name]) => !SHOWN.includes(name)));
  const pictures = [one.reference ?? []].flat();
  const keep = (name) => one[name] !== null && one[name] !== undefined && (rest[name] = one[name]);
  const card = newReference({
    pictures: pictures.map(hashOf).filter(Boolean),
    style: one.style || "",
    tokens: one.image_prompt || "",
    adapter: one.adapter || "",
    preset: one.preset || "",
    composition: one.composition ?? null,
    boost: one.boost ?? null,
    rest,
  });
  if (pictures.length > card.pictures.length) keep("reference");
  if (typeof one.scale === "number") card.scale = one.scale;
  else keep("scale");
  const masks = [one.mask ?? []].flat();
  if (masks.length === 1 && hashOf(masks[0])) card.mask = hashOf(masks[0]);
  else keep("mask");
  for (const name of ["face", "framing", "fusion"]) {
    if (typeof one[name] === "string") card[name] = one[name];
    else keep(name);
  }
  return Object.assign(card, scheduleFrom(one.schedule));
}

function scheduleFrom(schedule) {
  if (schedule === null || schedule === undefined) return {};
  const text = Array.isArray(schedule) ? schedule.join(",") : String(schedule);
  const found = /^(?:([\d.]+)\s*-\s*([\d.]+))?\s*([a-z][a-z-]*)?$/.exec(text.trim());
  if (!found || !text.trim()) return { custom: text };
  return {
    start: Number(found[1] ?? 0),
    end: Number(found[2] ?? 1),
    curve: found[3] || "constant",
  };
}

const PLAIN = [
  "prompt",
  "negative_prompt",
  "references",
  "init_image",
  "strength",
  "inpaint_mask",
  "seed",
  "num_images",
  "steps",
  "guidance_scale",
  "eta",
  "size",
  "base",
];

/** Fills the form; `index` is the picture of the request that is wanted. */
export function fromRequest(request, index = 0) {
  const rest = Object.fromEntries(
    Object.entries(request).filter(([name, value]) => !PLAIN.includes(name) && value !== null),
  );
  const references = (request.references || [])
    .filter((one) => [one.reference ?? []].flat().length || one.style || one.image_prompt)
    .map(referenceFromRequest);
  setForm({
    ...newForm(),
    references,
    rest,
    prompt: request.prompt || "",
    negative: request.negative_prompt || "",
    size: request.size || null,
    seed: (request.seed ?? 1) + index,
    fixed: true,
    steps: request.steps ?? null,
    guidance: request.guidance_scale ?? null,
    eta: request.eta ?? null,
    count: 1,
    start: hashOf(request.init_image),
    strength: request.strength ?? null,
    inpaint: hashOf(request.inpaint_mask),
  });
  set({ errors: [], view: "picture" });
}

/** The pictures of the form that the server no longer has, as [card or null, hash]. */
export async function missingPictures() {
  const wanted = state.form.references.flatMap((one) => one.pictures.map((hash) => [one, hash]));
  const urls = await Promise.all(wanted.map(([, hash]) => pictureUrl(`uploads/${hash}`)));
  return wanted.filter((_, index) => urls[index] === null);
}
