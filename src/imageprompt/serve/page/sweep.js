// The same picture at several strengths of a reference, or guidance scales: a grid.
import { html, useState } from "./vendor/preact-htm.js";
import { Button, NumberBox, Picture, Select } from "./controls.js";
import { cancelAll, pictureOf, select, sweep } from "./jobs.js";
import { active, set, setForm, setReference, size, state } from "./state.js";
import { t } from "./words.js";

export function Sweep() {
  const cards = active();
  const [choice, setChoice] = useState({
    what: cards[0]?.id || "guidance",
    from: 0,
    to: 1.2,
    count: 5,
    seeds: 1,
  });
  const what =
    choice.what === "guidance" || cards.some((one) => one.id === choice.what)
      ? choice.what
      : "guidance";
  const change = (changes) => setChoice({ ...choice, ...changes });
  const options = [
    ...cards.map((one) => [
      one.id,
      t("strengthOf", { number: state.form.references.indexOf(one) + 1 }),
    ]),
    ["guidance", t("guidance")],
  ];
  const { cells } = state;
  const values = state.sweep?.values || [];
  const [width, height] = size();
  const seeds = [...new Set(cells.map((cell) => cell.seed))];
  const busy = cells.some((cell) => cell.state === "queued");
  const use = (cell) => {
    if (state.sweep.what === "guidance")
      setForm({ guidance: cell.value, seed: cell.seed, fixed: true });
    else {
      setReference(state.sweep.what, { scale: cell.value });
      setForm({ seed: cell.seed, fixed: true });
    }
    select(cell.picture);
    set({ toast: { text: t("used", { value: cell.value }) } });
  };
  return html`<div class="bar">
      <strong>${t("sweep")}</strong
      ><span class="end">
        <${Button} label=${t("done")} text onClick=${() => set({ view: "picture" })}
      /></span>
    </div>
    <form
      class="ranges"
      onSubmit=${(event) => {
        event.preventDefault();
        sweep({ ...choice, what });
      }}
    >
      <${Select}
        label=${t("vary")}
        value=${what}
        options=${options}
        onChange=${(name) => change({ what: name, ...(name === "guidance" ? { from: 1, to: 9 } : { from: 0, to: 1.2 }) })}
      />
      <label class="field"
        ><span class="name">${t("from")}</span
        ><${NumberBox}
          label=${t("from")}
          value=${choice.from}
          step="0.05"
          onChange=${(from) => change({ from: from ?? 0 })}
      /></label>
      <label class="field"
        ><span class="name">${t("to")}</span
        ><${NumberBox}
          label=${t("to")}
          value=${choice.to}
          step="0.05"
          onChange=${(to) => change({ to: to ?? 1 })}
      /></label>
      <${Select}
        label=${t("columns")}
        value=${String(choice.count)}
        options=${["3", "4", "5", "6", "7"].map((n) => [n, n])}
        onChange=${(n) => change({ count: Number(n) })}
      />
      <${Select}
        label=${t("seeds")}
        value=${String(choice.seeds)}
        options=${["1", "2", "3", "4"].map((n) => [n, n])}
        onChange=${(n) => change({ seeds: Number(n) })}
      />
      <button class="button primary" type="submit" disabled=${busy}>
        ${t("runSweep", { count: choice.count * choice.seeds })}
      </button>
      ${busy && html`<${Button} text label=${t("cancelAll")} onClick=${cancelAll} />`}
    </form>
    ${
      values.length > 0
        ? html`<div class="fit">
            <div
              class="grid"
              style=${{ "--columns": values.length, "--rows": seeds.length, "--w": width, "--h": height }}
            >
              <span />${values.map((value) => html`<b>${value.toFixed(2)}</b>`)}
              ${seeds.map((seed, row) => html`<span class="seed-of">${seed}</span>${cells.slice(row * values.length, (row + 1) * values.length).map((cell) => html`<${Cell} cell=${cell} onUse=${use} />`)}`)}
            </div>
          </div>`
        : html`<p class="note middle">${t("sweepNote")}</p>`
    }`;
}

function Cell({ cell, onUse }) {
  const picture = cell.picture && pictureOf(cell.picture);
  const preview = state.jobs.find((one) => one.id === cell.job)?.previews[0];
  return html`<button
    type="button"
    class=${`cell ${cell.state}`}
    disabled=${!picture}
    onClick=${() => onUse(cell)}
    aria-label=${t("cell", { value: cell.value, seed: cell.seed })}
  >
    ${
      picture
        ? html`<${Picture} path=${picture.url} />`
        : preview
          ? html`<img src=${preview} alt="" />`
          : html`<span>${t.maybe(`cell_${cell.state}`) || ""}</span>`
    }
  </button>`;
}
