// The references: a card for each, with what to take from it, how strongly, when and where.
import { html, useRef, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import {
  Button,
  Field,
  field,
  FileButton,
  Icon,
  Picture,
  Problem,
  Select,
  Slider,
} from "./controls.js";
import { addReferences, keepPicture, loadStyles, say, tell, toast } from "./jobs.js";
import { HUES, MaskView } from "./masks.js";
import { forget, set, setForm, setReference, size, state, steps } from "./state.js";
import { t } from "./words.js";

export const hueOf = (id) => state.form.references.findIndex((one) => one.id === id) % HUES;

// ── one reference ──────────────────────────────────────────────────────────────────────────────

const CURVES = {
  constant: () => 1,
  "linear-in": (x) => x,
  "linear-out": (x) => 1 - x,
  "ease-in": smooth,
  "ease-out": (x) => 1 - smooth(x),
  "ease-in-out": (x) => smooth(1 - Math.abs(2 * x - 1)),
};

function smooth(x) {
  return x * x * (3 - 2 * x);
}

/** When a reference acts: two handles over the steps, and how strong it is at each. */
function Schedule({ one, param }) {
  const n = steps();
  const change = (changes) => (forget(param), setReference(one.id, changes));
  if (one.custom) {
    return html`<${Field} label=${t("when")} param=${param}
      ><input
        type="text"
        value=${one.custom}
        onInput=${(event) => change({ custom: event.target.value })}
        ...${field(param)}
    /><//>`;
  }
  const first = Math.round(one.start * n);
  const last = Math.max(first + 1, Math.round(one.end * n));
  const bars = Array.from({ length: Math.min(n, 60) }, (_, bar) => {
    const step = (bar * n) / Math.min(n, 60) / n;
    const on = step >= one.start - 1e-9 && step < one.end - 1e-9;
    return on ? CURVES[one.curve]((step - one.start) / (one.end - one.start)) : 0;
  });
  const slide = (name, low, high) => (event) => {
    const step = Math.min(high, Math.max(low, event.target.valueAsNumber));
    event.target.value = step;
    change({ [name]: step / n });
  };
  return html`<div class="schedule" role="group" aria-label=${t("when")}>
    <div class="line">
      <span class="name">${t("when")}</span>
      <span class="value">${t("stepsOf", { first: first + 1, last, n })}</span>
      <${Select}
        bare
        label=${t("curve")}
        value=${one.curve}
        onChange=${(curve) => change({ curve })}
        options=${Object.keys(CURVES).map((name) => [name, t(`curve_${name}`)])}
      />
    </div>
    <div class="steps">
      <div class="bars" aria-hidden="true">
        ${bars.map(
          (height) => html`<i class=${height ? "on" : ""} style=${{ "--h": height.toFixed(3) }} />`,
        )}
      </div>
      <input
        type="range"
        aria-label=${t("firstStep")}
        min="0"
        max=${n}
        value=${first}
        aria-valuetext=${String(first + 1)}
        onInput=${slide("start", 0, last - 1)}
      />
      <input
        type="range"
        aria-label=${t("lastStep")}
        min="0"
        max=${n}
        value=${last}
        onInput=${slide("end", first + 1, n)}
      />
    </div>
    <${Problem} param=${param} />
  </div>`;
}

function Source({ one, number, param }) {
  if (one.style) {
    const style = state.styles.find((found) => found.name === one.style);
    return html`<div class="source style">
      ${
        style?.thumbnail
          ? html`<${Picture} path=${style.thumbnail} alt=${one.style} />`
          : html`<${Icon} name="bookmark" />`
      } <span class="tag">${one.style}</span>
    </div>`;
  }
  if (one.tokens) {
    return html`<div class="source style">
      <${Icon} name="layers" /><span class="tag">${t("tokens")}</span>
    </div>`;
  }
  const drop = (event) => {
    const files = [...event.dataTransfer.files];
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    set({ dropping: false });
    more(files);
  };
  const more = async (files) => {
    for (const file of files) {
      const hash = await keepPicture(file);
      const now = state.form.references.find((card) => card.id === one.id);
      if (hash && now) setReference(one.id, { pictures: [...now.pictures, hash] });
    }
  };
  return html`<div
    class=${`source many-${Math.min(4, one.pictures.length)}`}
    onDrop=${drop}
    tabindex="-1"
    ...${field(param)}
  >
    ${one.pictures.slice(0, 4).map(
      (hash, at) =>
        html`<span key=${hash} class="one"
          ><${Picture} path=${`uploads/${hash}`} alt=${t("reference", { number })} />${
            one.pictures.length > 1 &&
            html`<${Button}
              icon="close"
              class="corner top"
              label=${t("removePicture", { at: at + 1, number })}
              onClick=${() =>
                setReference(one.id, {
                  pictures: one.pictures.filter((other) => other !== hash),
                })}
            />`
          }</span
        >`,
    )}
    <${FileButton}
      square
      icon="plus"
      label=${t("addPicture", { number })}
      multiple
      onFiles=${more}
      class="corner"
    />
  </div>`;
}

/** "content" or "style" for half of a pair of adapters, else "". */
export const halfOf = (name) => /#(content|style)$/.exec(name || "")?.[1] || "";

function Card({ one, index, onGrab }) {
  const [more, setMore] = useState(false);
  const number = index + 1;
  const { adapters, presets, scale } = state.server || { adapters: [], presets: [], scale: null };
  const param = (name) => `references.${index}.${name}`;
  const change = (changes) => setReference(one.id, changes);
  const preset = presets.find((known) => known.name === one.preset);
  const adapter = adapters.find((known) =>
    one.adapter ? known.name === one.adapter : known.default,
  );
  const half = halfOf(one.adapter);
  const halves = adapters.map(({ name }) => name).filter(halfOf);
  /** A half of a pair chooses the adapter, and takes no preset beside it. */
  const take = (name) =>
    change(
      halfOf(name)
        ? { adapter: name, preset: "" }
        : { preset: name, adapter: half ? "" : one.adapter },
    );
  const titleOf = (name) =>
    halves.length > 2 ? `${t(`take_${halfOf(name)}`)} · ${name.split("#")[0]}` : t(`take_${halfOf(name)}`);
  const remove = () => {
    const before = state.form.references;
    setForm({ references: before.filter((card) => card.id !== one.id) });
    toast(t("removed", { number }), t("undo"), () => setForm({ references: before }));
  };
  const paint = () =>
    set({
      view: "paint",
      tab: "picture",
      paint: {
        title: t("maskOf", { number }),
        hash: one.mask,
        hue: hueOf(one.id),
        over: null,
        onDone: (mask) => change({ mask }),
      },
    });
  return html`<li
    class=${`card hue-${hueOf(one.id)} ${one.muted ? "off" : ""}`}
    data-id=${one.id}
    aria-label=${t("reference", { number })}
  >
    <div class="head">
      <button
        type="button"
        class="grip"
        aria-label=${t("move", { number })}
        title=${t("moveHint")}
        onPointerDown=${(event) => onGrab(event, one.id)}
        onKeyDown=${(event) => moveByKey(event, one.id)}
      >
        <${Icon} name="grip" />
      </button>
      <span class="number">${number}</span>
      <strong
        >${one.style || (one.tokens ? t("tokens") : half ? t(`of_${half}`) : adapter?.kind === "face" ? t("face") : t("picture"))}</strong
      >
      <${Select}
        bare
        label=${t("adapter")}
        param=${param("adapter")}
        value=${one.adapter}
        onChange=${(name) => change({ adapter: name })}
        options=${[["", t("automatic")], ...adapters.map(({ name, kind }) => [name, kind === "face" ? `${name} · ${t("face")}` : name])]}
      />
      <span class="end">
        <${Button}
          icon=${one.muted ? "muted" : "eye"}
          label=${t("mute", { number })}
          class="quiet"
          aria-pressed=${one.muted}
          onClick=${() => change({ muted: !one.muted })} />
        <${Button} icon="close" label=${t("remove", { number })} class="quiet" onClick=${remove}
      /></span>
    </div>
    <div class="body">
      <${Source} one=${one} number=${number} param=${param("reference")} />
      <div class="choices">
        <${Select}
          label=${t("take")}
          param=${param("preset")}
          value=${half ? one.adapter : one.preset}
          onChange=${take}
          options=${[["", t("everything")], ...halves.map((name) => [name, titleOf(name)]), ...presets.map(({ name }) => [name, t.maybe(`preset_${name}`) || name])]}
        />
        ${
          one.rest.scale !== undefined
            ? html`<div class="line">
                <span class="name">${t("strength")}</span> <span class="value">${t("bySite")}</span
                ><${Button}
                  text
                  label=${t("oneNumber")}
                  class="quiet"
                  onClick=${() => {
                    const { scale, ...rest } = one.rest;
                    change({ rest });
                  }}
                />
              </div>`
            : html`<${Slider}
                label=${t("strength")}
                value=${one.scale}
                placeholder=${scale}
                min=${0}
                max=${1.5}
                step=${0.05}
                param=${param("scale")}
                onChange=${(value) => change({ scale: value })}
              />`
        }
      </div>
    </div>
    <${Problem} param=${param("reference")} /><${Problem} param=${param("style")} /><${Problem}
      param=${param("adapter")}
    />
    ${
      preset?.reads &&
      html`<${Slider}
        label=${t(preset.reads)}
        value=${one[preset.reads]}
        placeholder=${one.scale ?? scale}
        min=${0}
        max=${2}
        step=${0.05}
        param=${param(preset.reads)}
        onChange=${(value) => change({ [preset.reads]: value })}
      />`
    }
    <${Schedule} one=${one} param=${param("schedule")} />
    <div class="line where">
      <span class="name">${t("where")}</span>
      ${
        one.mask
          ? html`<span class="small-frame" style=${{ "--w": size()[0], "--h": size()[1] }}>
              <${MaskView} hash=${one.mask} hue=${hueOf(one.id)}
            /></span>`
          : html`<span class="value">${t("wholePicture")}</span>`
      }
      <span class="end"
        >${
          one.pictures.length > 0 &&
          html`<${Button}
            text
            label=${t("more")}
            class="quiet"
            aria-expanded=${more}
            aria-controls=${`more-${one.id}`}
            aria-label=${`${t("more")}: ${t("reference", { number })}`}
            onClick=${() => setMore(!more)}
          />`
        }
        ${one.mask && html`<${Button} text label=${t("clear")} class="quiet" onClick=${() => change({ mask: "" })} />`}
        <${Button}
          icon="brush"
          text
          label=${one.mask ? t("edit") : t("paintArea")}
          onClick=${paint}
          aria-label=${`${one.mask ? t("edit") : t("paintArea")}: ${t("reference", { number })}`}
          ...${field(param("mask"))}
      /></span>
    </div>
    <${Problem} param=${param("mask")} />
    ${
      more &&
      html`<div class="more" id=${`more-${one.id}`}>
        <div class="pair">
          <${Select}
            label=${t("framing")}
            param=${param("framing")}
            value=${one.framing}
            onChange=${(framing) => change({ framing })}
            options=${["", "crop", "pad", "squash", "tiles"].map((name) => [name, t(`framing_${name || "auto"}`)])}
          />
          ${
            adapter?.kind === "face" &&
            html`<${Select}
              label=${t("whichFace")}
              param=${param("face")}
              value=${one.face}
              onChange=${(face) => change({ face })}
              options=${["", "all", "0", "1", "2"].map((name) => [name, t(`face_${name || "largest"}`)])}
            />`
          }
          ${
            one.pictures.length > 1 &&
            html`<${Select}
              label=${t("fusion")}
              param=${param("fusion")}
              value=${one.fusion}
              onChange=${(fusion) => change({ fusion })}
              options=${["", "average", "weighted"].filter((name) => name !== "weighted" || one.fusion === name).map((name) => [name, t(`fusion_${name || "concat"}`)])}
            />`
          }
        </div>
        <${Check} key=${one.pictures.join()} one=${one} />
        <${SaveStyle} one=${one} />
      </div>`
    }
  </li>`;
}

/** Are these good reference pictures? The API says it with the names of problems first. */
function Check({ one }) {
  const [report, setReport] = useState(null);
  const [busy, setBusy] = useState(false);
  const check = async () => {
    setBusy(true);
    const reference = one.pictures.map((hash) => `upload:${hash}`);
    setReport((await tell(() => call("POST", "check", { reference }))) || null);
    setBusy(false);
  };
  const numberOf = (hash) => one.pictures.indexOf(hash) + 1;
  return html`<div class="check-pictures">
    <${Button}
      icon="search"
      text
      label=${busy ? t("checking") : t("check")}
      disabled=${busy}
      onClick=${check}
    />
    <div role="status">
      ${
        report &&
        html`<ul>
          ${report.pictures.map(
            (found) =>
              html`<li key=${found.picture}>
                <strong>${t("checked", { number: numberOf(found.picture), ...found })}</strong> ${
                  found.jpeg && html`<span class="value">JPEG ${found.jpeg}</span>`
                }
                <ul>
                  ${found.advice.map((text) => html`<li>${problemOf(text, found)}</li>`)}
                </ul>
                ${found.advice.length === 0 && html`<p class="note">${t("checkFine")}</p>`}
              </li>`,
          )}
          ${report.pairs.map(
            (pair) =>
              html`<li class="value">
                ${t("likeness", { a: numberOf(pair.a), b: numberOf(pair.b), value: pair.similarity })}
                ${t.maybe(`pair_${pair.advice}`)}
              </li>`,
          )}
        </ul>`
      }
    </div>
  </div>`;
}

/** Advice in the language of the page; as the API says it where there are no words. */
function problemOf(text, found) {
  const key = `problem_${text.split(":")[0].replace("heavy ", "")}`;
  return t.maybe(key) ? t(key, { loss: Math.round(100 * found.crop_loses) }) : text;
}

function SaveStyle({ one }) {
  const name = useRef();
  const save = async (event) => {
    event.preventDefault();
    const body = {
      name: name.current.value.trim(),
      reference: one.pictures.map((hash) => `upload:${hash}`),
    };
    if (one.adapter) body.adapter = one.adapter;
    if (one.framing) body.framing = one.framing;
    if (one.fusion) body.fusion = one.fusion;
    const made = body.name && (await tell(() => call("POST", "styles", body)));
    if (!made) return;
    name.current.value = "";
    toast(t("styleKept", { name: made.name }));
    loadStyles();
  };
  return html`<form class="save" onSubmit=${save}>
    <input
      ref=${name}
      type="text"
      maxlength="60"
      aria-label=${t("styleName")}
      placeholder=${t("styleName")}
    />
    <${Button} icon="bookmark" label=${t("keepAsStyle")} text type="submit" onClick=${save} />
  </form>`;
}

// ── order ──────────────────────────────────────────────────────────────────────────────────────

function moveTo(id, place) {
  const references = state.form.references.filter((one) => one.id !== id);
  place = Math.min(references.length, Math.max(0, place));
  references.splice(
    place,
    0,
    state.form.references.find((one) => one.id === id),
  );
  setForm({ references });
  say(t("moved", { number: place + 1 }));
}

function moveByKey(event, id) {
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const grip = event.currentTarget;
  moveTo(id, state.form.references.findIndex((one) => one.id === id) + by);
  requestAnimationFrame(() => grip.focus());
}

/** Drags a card by its grip: the others make room. */
function grab(event, id) {
  const grip = event.currentTarget;
  grip.setPointerCapture(event.pointerId);
  const card = grip.closest(".card");
  card.classList.add("dragged");
  const follow = ({ clientY }) => {
    const cards = [...document.querySelectorAll(".card")];
    const place = cards
      .filter((other) => other !== card)
      .filter((other) => {
        const box = other.getBoundingClientRect();
        return clientY > box.top + box.height / 2;
      }).length;
    if (place !== cards.indexOf(card)) moveTo(id, place);
  };
  const drop = () => {
    card.classList.remove("dragged");
    grip.removeEventListener("pointermove", follow);
  };
  grip.addEventListener("pointermove", follow);
  grip.addEventListener("lostpointercapture", drop, { once: true });
}

export function References() {
  const { references } = state.form;
  const library = () => set({ panel: "library", tab: "library" });
  return html`<section class="references" aria-labelledby="references">
    <div class="title">
      <h2 id="references">${t("references")}</h2>
      <span class="end"
        ><${FileButton} icon="plus" label=${t("addReference")} multiple onFiles=${addReferences} />
        <${Button} icon="bookmark" label=${t("addStyle")} text onClick=${library}
      /></span>
    </div>
    ${references.length === 0 && html`<p class="note">${t("noReferences")}</p>`}
    <ol class="cards">
      ${references.map((one, index) => html`<${Card} key=${one.id} one=${one} index=${index} onGrab=${grab} />`)}
    </ol>
  </section>`;
}
