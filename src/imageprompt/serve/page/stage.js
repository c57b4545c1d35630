// The centre: the picture of now, two compared, or the grid of a sweep.
import { html, useState } from "./vendor/preact-htm.js";
import { Button, FileButton, Icon, NumberBox, Picture, Select } from "./controls.js";
import { hueOf, Progress } from "./composer.js";
import { addReferences, cancelAll, remove, reuse, select, selected, sweep, takeFiles } from "./jobs.js";
import { MaskView, Painter } from "./masks.js";
import { active, set, setForm, setReference, size, state } from "./state.js";
import { t } from "./words.js";

const pictureOf = (id) => state.pictures.find((one) => one.id === id);

/** A frame of these proportions, as large as its place allows. */
function Fit({ width, height, children, class: kind = "" }) {
  return html`<div class="fit"><div class=${`frame ${kind}`} style=${{ "--w": width, "--h": height }}>${children}</div></div>`;
}

const Masks = () => active().filter((one) => one.mask).map((one) =>
  html`<${MaskView} key=${one.id} hash=${one.mask} hue=${hueOf(one.id)} />`);

function Empty() {
  const [width, height] = size();
  const masks = active().some((one) => one.mask);
  const ready = active().length > 0 || state.form.prompt;
  return html`<${Fit} width=${width} height=${height} class="blank">
    <${Masks} />${!masks && html`<div class="welcome">
      <${Icon} name="picture" /><h2>${ready ? t("readyTitle") : t("emptyTitle")}</h2><p>${ready ? t("readyText") : t("emptyText")}</p>
      ${!ready && html`<p class="line"><${FileButton} icon="plus" label=${t("addReference")} class="primary" multiple onFiles=${addReferences} />
        <${FileButton} icon="open" label=${t("openPicture")} onFiles=${takeFiles} /></p>`}</div>`}
    <span class="dimensions">${width} × ${height}</span><//>`;
}

function Running({ job }) {
  const [width, height] = job.request.size || size();
  const shown = Object.keys(job.previews);
  const count = job.request.num_images || 1;
  return html`<${Fit} width=${width} height=${height} class=${`running ${count > 1 ? "several" : ""}`}>
    ${shown.length ? shown.slice(0, 9).map((index) => html`<img key=${index} src=${job.previews[index]} alt=${t("preview")} />`)
      : html`<div class="welcome quiet"><p>${job.state === "running" ? t("running") : t("waiting")}</p></div>`}<//>`;
}

/** What made a picture, in one line and its details. */
function Recipe({ picture }) {
  const { request } = picture;
  const references = (request.references || []).filter((one) => one.reference || one.style || one.image_prompt);
  const facts = [[t("size"), `${picture.width} × ${picture.height}`], [t("seed"), picture.seed],
    [t("steps"), request.steps], [t("guidance"), request.guidance_scale]];
  return html`<section class="recipe" aria-label=${t("recipe")}>
    <div class="made"><p class="prompt">${request.prompt || html`<em>${t("noPrompt")}</em>`}</p>
      <dl>${facts.filter(([, value]) => value !== undefined && value !== null).map(([name, value]) =>
        html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></div>
    ${references.length > 0 && html`<ul class="from">${references.map((one, index) => html`<li class=${`hue-${index % 8}`}>
      ${one.reference ? html`<${Picture} path=${`uploads/${String([one.reference].flat()[0]).slice(7)}`} alt=${t("reference", { number: index + 1 })} />`
        : html`<${Icon} name=${one.style ? "bookmark" : "layers"} />`}
      <span>${one.style || one.preset || t("everything")}${" "}<b>${typeof one.scale === "object" ? t("bySite") : one.scale}</b></span></li>`)}</ul>`}
    <div class="actions"><${Button} icon="reuse" label=${t("useThis")} text class="primary" onClick=${() => reuse(picture)} />
      <a class="button" href=${picture.url.replace(/^\//, "")} download=${`imageprompt-${picture.seed}.png`}
        onClick=${download(picture)}><${Icon} name="save" /><span>${t("save")}</span></a>
      <${Button} icon="compare" label=${t("compare")} text onClick=${() => markForCompare(picture)} aria-pressed=${state.compare.includes(picture.id)} />
      <${Button} icon="trash" label=${t("deletePicture")} onClick=${() => remove(picture)} /></div></section>`;
}

const download = (picture) => async (event) => {
  event.preventDefault();
  const { pictureUrl } = await import("./api.js");
  const link = Object.assign(document.createElement("a"), { href: await pictureUrl(picture.url), download: `imageprompt-${picture.seed}.png` });
  link.click();
};

function markForCompare(picture) {
  const marked = state.compare.filter((id) => id !== picture.id && pictureOf(id));
  if (marked.length) set({ compare: [marked.at(-1), picture.id], view: "compare" });
  else set({ compare: [picture.id], toast: { text: t("chooseSecond") }, panel: "gallery" });
}

// ── compare ────────────────────────────────────────────────────────────────────────────────────

function Compare() {
  const [cut, setCut] = useState(50);
  const [beside, setBeside] = useState(false);
  const [a, b] = state.compare.map(pictureOf);
  if (!a || !b) return null;
  const label = (one, kind) => html`<span class=${`label ${kind}`}>${kind.toUpperCase()} · ${one.seed}</span>`;
  const bar = html`<div class="bar"><strong>${t("comparing")}</strong><span class="end">
    <${Button} icon="side" label=${t("sideBySide")} text aria-pressed=${beside} onClick=${() => setBeside(!beside)} />
    <${Button} icon="compare" label=${t("swap")} text onClick=${() => set({ compare: [b.id, a.id] })} />
    <${Button} label=${t("done")} text class="primary" onClick=${() => set({ view: "picture", compare: [] })} /></span></div>`;
  if (beside) {
    return html`${bar}<div class="beside">${[[a, "a"], [b, "b"]].map(([one, kind]) => html`<${Fit} key=${kind} width=${one.width} height=${one.height}>
      <${Picture} path=${one.url} alt=${one.request.prompt} />${label(one, kind)}<//>`)}</div>`;
  }
  return html`${bar}<${Fit} width=${a.width} height=${a.height} class="compare">
    <${Picture} path=${a.url} alt=${`A: ${a.request.prompt}`} />
    <span class="over" style=${{ "--cut": `${cut}%` }}><${Picture} path=${b.url} alt=${`B: ${b.request.prompt}`} /></span>
    ${label(a, "a")}${label(b, "b")}
    <input type="range" min="0" max="100" step="0.5" value=${cut} aria-label=${t("compareAt")}
      onInput=${(event) => setCut(event.target.valueAsNumber)} />
    <i class="cut" style=${{ "--cut": `${cut}%` }} aria-hidden="true" /><//>`;
}

// ── sweep ──────────────────────────────────────────────────────────────────────────────────────

function Sweep() {
  const cards = active();
  const [choice, setChoice] = useState({ what: cards[0]?.id || "guidance", from: 0, to: 1.2, count: 5, seeds: 1 });
  const what = choice.what === "guidance" || cards.some((one) => one.id === choice.what) ? choice.what : "guidance";
  const change = (changes) => setChoice({ ...choice, ...changes });
  const options = [...cards.map((one) => [one.id, t("strengthOf", { number: state.form.references.indexOf(one) + 1 })]), ["guidance", t("guidance")]];
  const { cells } = state;
  const values = state.sweep?.values || [];
  const [width, height] = size();
  const seeds = [...new Set(cells.map((cell) => cell.seed))];
  const busy = cells.some((cell) => cell.state === "queued");
  const use = (cell) => {
    if (state.sweep.what === "guidance") setForm({ guidance: cell.value, seed: cell.seed, fixed: true });
    else {
      setReference(state.sweep.what, { scale: cell.value });
      setForm({ seed: cell.seed, fixed: true });
    }
    select(cell.picture);
    set({ toast: { text: t("used", { value: cell.value }) } });
  };
  return html`<div class="bar"><strong>${t("sweep")}</strong><span class="end">
      <${Button} label=${t("done")} text onClick=${() => set({ view: "picture" })} /></span></div>
    <form class="ranges" onSubmit=${(event) => { event.preventDefault(); sweep({ ...choice, what }); }}>
      <${Select} label=${t("vary")} value=${what} options=${options} onChange=${(name) => change({ what: name, ...(name === "guidance" ? { from: 1, to: 9 } : { from: 0, to: 1.2 }) })} />
      <label class="field"><span class="name">${t("from")}</span><${NumberBox} label=${t("from")} value=${choice.from} step="0.05" onChange=${(from) => change({ from: from ?? 0 })} /></label>
      <label class="field"><span class="name">${t("to")}</span><${NumberBox} label=${t("to")} value=${choice.to} step="0.05" onChange=${(to) => change({ to: to ?? 1 })} /></label>
      <${Select} label=${t("columns")} value=${String(choice.count)} options=${["3", "4", "5", "6", "7"].map((n) => [n, n])} onChange=${(n) => change({ count: Number(n) })} />
      <${Select} label=${t("seeds")} value=${String(choice.seeds)} options=${["1", "2", "3", "4"].map((n) => [n, n])} onChange=${(n) => change({ seeds: Number(n) })} />
      <button class="button primary" type="submit" disabled=${busy}>${t("runSweep", { count: choice.count * choice.seeds })}</button>
      ${busy && html`<${Button} text label=${t("cancelAll")} onClick=${cancelAll} />`}</form>
    ${values.length > 0 ? html`<div class="fit"><div class="grid" style=${{ "--columns": values.length, "--rows": seeds.length, "--w": width, "--h": height }}>
      <span />${values.map((value) => html`<b>${value.toFixed(2)}</b>`)}
      ${seeds.map((seed, row) => html`<span class="seed-of">${seed}</span>${cells.slice(row * values.length, (row + 1) * values.length).map((cell) => html`<${Cell} cell=${cell} onUse=${use} />`)}`)}
      </div></div>` : html`<p class="note middle">${t("sweepNote")}</p>`}`;
}

function Cell({ cell, onUse }) {
  const picture = cell.picture && pictureOf(cell.picture);
  const preview = state.jobs.find((one) => one.id === cell.job)?.previews[0];
  return html`<button type="button" class=${`cell ${cell.state}`} disabled=${!picture} onClick=${() => onUse(cell)}
    aria-label=${t("cell", { value: cell.value, seed: cell.seed })}>
    ${picture ? html`<${Picture} path=${picture.url} />` : preview ? html`<img src=${preview} alt="" />`
      : html`<span>${t.maybe(`cell_${cell.state}`) || ""}</span>`}</button>`;
}

// ── all ────────────────────────────────────────────────────────────────────────────────────────

export function Stage() {
  const { view } = state;
  if (view === "paint" && state.paint) {
    const last = selected() || state.pictures[0];
    const [width, height] = size();
    const same = last && Math.abs(last.width / last.height - width / height) < 0.01;
    state.paint.over ??= same ? last.url : "";
    return html`<${Painter} key=${state.paint.title} />`;
  }
  if (view === "sweep") return html`<${Sweep} />`;
  if (view === "compare" && state.compare.length === 2) return html`<${Compare} />`;
  const job = state.jobs.find((one) => one.state === "running") || state.jobs[0];
  const picture = selected() || (!job && !state.fresh ? state.pictures[0] : null);
  const masked = active().some((one) => one.mask);
  const bar = html`<div class="bar"><strong>${picture ? t("made") : job ? t("making") : t("canvasTitle")}</strong><span class="end">
    ${masked && html`<${Button} icon="layers" label=${t("showMasks")} text aria-pressed=${state.showMasks}
      onClick=${() => set({ showMasks: !state.showMasks })} />`}
    <${Button} icon="grid" label=${t("sweep")} text onClick=${() => set({ view: "sweep" })} /></span></div>
    <${Progress} class="phone" />`;
  if (picture) {
    return html`${bar}<${Fit} width=${picture.width} height=${picture.height}>
      <${Picture} path=${picture.url} alt=${picture.request.prompt || t("picture")} />
      ${masked && state.showMasks && html`<div class="masks"><${Masks} /></div>`}<//><${Recipe} picture=${picture} />`;
  }
  return html`${bar}${job ? html`<${Running} job=${job} />` : html`<${Empty} />`}`;
}
