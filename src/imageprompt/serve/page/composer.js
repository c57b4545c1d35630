// The left column: references, start picture, settings; below, the words and the button that runs all.
import { html, useState } from "./vendor/preact-htm.js";
import {
  Button,
  Field,
  field,
  FileButton,
  NumberBox,
  Picture,
  Problem,
  Select,
  Slider,
} from "./controls.js";
import { cancel, cancelAll, keepPicture, run } from "./jobs.js";
import { MaskView } from "./masks.js";
import { References } from "./references.js";
import { active, clearForm, forget, set, setForm, size, state } from "./state.js";
import { t } from "./words.js";

// ── words, start picture, settings ─────────────────────────────────────────────────────────────

function Words() {
  const { form } = state;
  const [open, setOpen] = useState(Boolean(form.negative));
  const text = (name, param) => ({
    value: form[name],
    ...field(param),
    onInput: (event) => (forget(param), setForm({ [name]: event.target.value })),
  });
  return html`<div class="words">
    <div class="line">
      <label class="name" for="prompt">${t("prompt")}</label>
      ${!open && !form.negative && html`<${Button} icon="plus" label=${t("addNegative")} text class="quiet end" onClick=${() => setOpen(true)} />`}
    </div>
    <textarea
      id="prompt"
      rows="3"
      placeholder=${t("promptHint")}
      ...${text("prompt", "prompt")}
    /><${Problem} param="prompt" /> ${
      (open || form.negative) &&
      html`<${Field} label=${t("negative")} param="negative_prompt">
        <textarea
          rows="2"
          placeholder=${t("negativeHint")}
          ...${text("negative", "negative_prompt")}
        />
      <//>`
    }
  </div>`;
}

function StartPicture() {
  const { form } = state;
  const take = async ([file]) => {
    const hash = file && (await keepPicture(file));
    if (hash) setForm({ start: hash, inpaint: "" });
  };
  const drop = (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    set({ dropping: false });
    take([...event.dataTransfer.files]);
  };
  const paint = () =>
    set({
      view: "paint",
      tab: "picture",
      paint: {
        title: t("inpaintMask"),
        hash: form.inpaint,
        hue: 7,
        over: `uploads/${form.start}`,
        onDone: (inpaint) => setForm({ inpaint }),
      },
    });
  if (!form.start) {
    return html`<section class="start empty" onDrop=${drop}>
      <${FileButton}
        icon="picture"
        class="quiet left"
        label=${t("addStart")}
        onFiles=${take}
        ...${field("init_image")}
      /><${Problem} param="init_image" />
    </section>`;
  }
  return html`<section class="start" onDrop=${drop}>
    <div class="title">
      <h2>${t("startPicture")}</h2>
      <span class="end"
        ><${Button}
          icon="close"
          label=${t("removeStart")}
          class="quiet"
          onClick=${() => setForm({ start: "", inpaint: "", strength: null })}
      /></span>
    </div>
    <div class="body">
      <div class="source many-1">
        <${Picture} path=${`uploads/${form.start}`} alt=${t("startPicture")} />
        ${form.inpaint && html`<${MaskView} hash=${form.inpaint} hue=${7} />`}
      </div>
      <div class="choices">
        <${Slider}
          label=${t("change")}
          value=${form.strength}
          placeholder=${0.8}
          min=${0.05}
          max=${1}
          step=${0.05}
          param="strength"
          onChange=${(strength) => setForm({ strength })}
        />
        <div class="line">
          <${Button}
            icon="brush"
            text
            label=${form.inpaint ? t("editInpaint") : t("paintInpaint")}
            onClick=${paint}
            ...${field("inpaint_mask")}
          />${
            form.inpaint &&
            html`<${Button}
              text
              class="quiet"
              label=${t("clear")}
              onClick=${() => setForm({ inpaint: "" })}
            />`
          }
        </div>
      </div>
    </div>
    <${Problem} param="init_image" /><${Problem} param="inpaint_mask" />
  </section>`;
}

const RATIOS = [
  [1, 1],
  [4, 3],
  [3, 4],
  [3, 2],
  [2, 3],
  [16, 9],
];

function Settings() {
  const { form, server } = state;
  const base = server?.base;
  const [width, height] = size();
  const multiple = base?.multiple || 8;
  const side = (value) => Math.max(multiple, Math.round(value / multiple) * multiple);
  const setSize = (w, h) => setForm({ size: w && h ? [w, h] : null });
  const shape = (text) => {
    const [a, b] = text.split(":").map(Number);
    const area = (base?.width || 512) * (base?.height || 512);
    setSize(side(Math.sqrt((area * a) / b)), side(Math.sqrt((area * b) / a)));
  };
  const ratio = RATIOS.find(([a, b]) => {
    const area = (base?.width || 512) * (base?.height || 512);
    return side(Math.sqrt((area * a) / b)) === width && side(Math.sqrt((area * b) / a)) === height;
  });
  return html`<section class="settings">
    <h2 class="hidden">${t("settings")}</h2>
    <div class="size">
      <span class="name">${t("size")}</span>
      <${NumberBox}
        label=${t("width")}
        value=${width}
        min="8"
        step=${multiple}
        param="size"
        onChange=${(w) => setSize(w, height)}
      />
      <span aria-hidden="true">×</span>
      <${NumberBox}
        label=${t("height")}
        value=${height}
        min="8"
        step=${multiple}
        param="size"
        onChange=${(h) => setSize(width, h)}
      />
      <${Select}
        bare
        label=${t("shape")}
        value=${ratio ? ratio.join(":") : ""}
        onChange=${shape}
        options=${[...(ratio ? [] : [["", t("custom")]]), ...RATIOS.map((pair) => [pair.join(":"), pair.join(":")])]}
      />
    </div>
    <${Problem} param="size" />
    <div class="pair">
      <${Slider}
        label=${t("steps")}
        value=${form.steps}
        placeholder=${base?.steps}
        min=${1}
        max=${Math.min(100, server?.limits.steps || 100)}
        step=${1}
        param="steps"
        onChange=${(value) => setForm({ steps: value })}
      />
      <${Slider}
        label=${t("guidance")}
        value=${form.guidance}
        placeholder=${base?.guidance_scale}
        min=${0}
        max=${15}
        step=${0.5}
        param="guidance_scale"
        onChange=${(guidance) => setForm({ guidance })}
      />
    </div>
    ${
      typeof base?.eta === "number" &&
      html`<${Slider}
        label=${t("eta")}
        value=${form.eta}
        placeholder=${base.eta}
        min=${0}
        max=${1}
        step=${0.1}
        param="eta"
        onChange=${(eta) => setForm({ eta })}
      />`
    }
    <div class="seed">
      <span class="name">${t("seed")}</span>
      <${NumberBox}
        label=${t("seed")}
        value=${form.seed}
        min="0"
        step="1"
        param="seed"
        onChange=${(seed) => setForm({ seed: seed ?? 1, fixed: true })}
      />
      <label class="check"
        ><input
          type="checkbox"
          checked=${!form.fixed}
          onChange=${(event) => setForm({ fixed: !event.target.checked })}
        /><span>${t("newSeed")}</span></label
      >
    </div>
    <${Problem} param="seed" />
  </section>`;
}

// ── run ────────────────────────────────────────────────────────────────────────────────────────

/** How far the running job is, its place in the queue, and the buttons that end it. */
export function Progress({ class: kind = "" }) {
  const { jobs } = state;
  const job = jobs.find((one) => one.state === "running") || jobs[0];
  if (!job) return null;
  const waiting = jobs.length - 1;
  const text = job.cancelling
    ? t("cancelling")
    : job.state === "running"
      ? job.total
        ? t("stepOf", { step: job.step, total: job.total })
        : t("running")
      : job.position
        ? t("placeInQueue", { place: job.position })
        : t("waiting");
  return html`<div class=${`progress ${kind}`}>
    <div class="line">
      <span>${text}</span>
      ${waiting > 0 && html`<span class="value">${t("waitingJobs", { count: waiting })}</span>`}
      <span class="end"
        >${waiting > 0 && html`<${Button} text label=${t("cancelAll")} class="quiet" onClick=${cancelAll} />`}
        <${Button} text label=${t("cancel")} class="quiet cancel" onClick=${() => cancel()}
      /></span>
    </div>
    <progress aria-label=${t("progress")} max="1" value=${job.total ? job.step / job.total : 0} />
  </div>`;
}

const COUNTS = [1, 2, 3, 4, 6, 8];

/** Always in sight: the words, and the button that runs everything. */
function Dock() {
  const { form, errors } = state;
  const general = errors.find((error) => !error.param);
  return html`<div class="dock">
    <${Words} />
    ${general && html`<p class="problem" role="alert">${general.message}</p>`}<${Progress} />
    <div class="line">
      <select
        class="count"
        aria-label=${t("count")}
        value=${form.count}
        ...${field("num_images")}
        onChange=${(event) => (forget("num_images"), setForm({ count: Number(event.target.value) }))}
      >
        ${COUNTS.map((count) => html`<option value=${count} selected=${count === form.count}>×${count}</option>`)}
      </select>
      <button type="button" class="button primary go" disabled=${!state.server} onClick=${run}>
        <span>${active().length ? t("run") : t("runText")}</span><kbd>Ctrl ↵</kbd>
      </button>
    </div>
    <${Problem} param="num_images" />
  </div>`;
}

export function Composer() {
  return html`<div class="scroll">
      <${References} /><${StartPicture} /><${Settings} />
      <${Button} text label=${t("startOver")} class="quiet left" onClick=${clearForm} />
    </div>
    <${Dock} />`;
}
